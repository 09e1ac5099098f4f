"""The reference set of FID and IS: ImageNet's validation images after Resize(256) and CenterCrop(256), as PNG."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from addp_backbone.files.atomic import replace_file
from addp_backbone.files.image_limits import open_image
from addp_backbone.files.images import DECODING_ERRORS, IMAGE_ENDINGS, is_image_name, write_png
from addp_backbone.runtime.processes import process_pool
from pretrain.evaluation.image_sets import FORMAT, MANIFEST_FILE, SIZE_PX, checksum_of_names

_MAX_NAMES = 10
_CHUNK = 16

Progress = Callable[[Iterable[str | None], int], Iterable[str | None]]


def prepare_reference_set(
    source: Path, out: Path, num_workers: int = 1, progress: Progress | None = None, size_px: int = SIZE_PX
) -> dict:
    """Writes the reference set and, once it is complete, its manifest. Existing images are kept.

    Args:
        source: Folder with the validation images, at any depth (flat or in class folders).
        out: Folder to write ``<name>.png`` and ``manifest.json`` to.
        num_workers: Number of processes.
        progress: Wraps the iterator over finished images, for example in a progress bar; its second argument is their
            number. None shows none.
        size_px: Side of the images, in pixels; the published protocol uses 256.

    Returns:
        The manifest: number, size and format of the images, SHA-256 of their sorted names, transform and versions.

    Raises:
        ValueError: If images are missing, unreadable, share a name, or ``out`` holds others; no manifest is written
            then.
    """
    targets = _targets(source, out)
    strangers = sorted({path.name for path in out.glob('*.png')} - {target.name for target in targets.values()})
    if strangers:
        raise ValueError(
            f'{out} holds {len(strangers)} images that do not come from {source} ({_some(strangers)}): give another '
            'folder, or remove them'
        )
    jobs = [(path, target, size_px) for path, target in targets.items() if not target.exists()]
    errors = [error for error in _run(jobs, num_workers, progress) if error]
    if errors:
        raise ValueError(
            f'{len(errors)} of {len(targets)} images could not be read, get them again and go on: {_some(errors)}'
        )
    for leftover in out.glob('.*.part'):
        leftover.unlink()
    manifest = dict(
        num_images=len(targets),
        size=f'{size_px}x{size_px}',
        format=FORMAT,
        names_sha256=checksum_of_names(target.name for target in targets.values()),
        transform=f'torchvision Resize({size_px}), bilinear with antialiasing; CenterCrop({size_px}); RGB',
        versions={name: version(name) for name in ('torchvision', 'pillow')},
    )
    replace_file(out / MANIFEST_FILE, json.dumps(manifest, indent=2) + '\n')
    return manifest


def prepare_image(image: Image.Image, size_px: int = SIZE_PX) -> Image.Image:
    """Resizes the shorter side and crops the centre, as RGB."""
    return Compose([Resize(size_px), CenterCrop(size_px)])(image.convert('RGB'))


def _targets(source: Path, out: Path) -> dict[Path, Path]:
    """Maps each image of a folder to its target path."""
    if not source.is_dir():
        raise ValueError(f'{source} is not a folder; give the one with the validation images')
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f'{out} lies within {source}: its images would be mistaken for validation images')
    paths = sorted(path for path in source.rglob('*') if is_image_name(path.name) and path.is_file())
    if not paths:
        raise ValueError(f'{source} holds no images ({", ".join(IMAGE_ENDINGS)})')
    repeated = sorted(name for name, count in Counter(path.stem for path in paths).items() if count > 1)
    if repeated:
        raise ValueError(
            f'{source} holds several images of one name ({_some(repeated)}); is it the validation set alone?'
        )
    return {path: out / f'{path.stem}.png' for path in paths}


def _run(jobs: Sequence[tuple[Path, Path, int]], num_workers: int, progress: Progress | None) -> Iterator[str | None]:
    show = progress or (lambda finished, total: finished)
    if num_workers <= 1 or len(jobs) < 2:
        yield from show(map(_prepare, jobs), len(jobs))
        return
    with process_pool(num_workers) as pool:
        yield from show(pool.map(_prepare, jobs, chunksize=_CHUNK), len(jobs))


def _prepare(job: tuple[Path, Path, int]) -> str | None:
    """Writes one image; returns the error message, if any."""
    path, target, size_px = job
    try:
        with open_image(path) as image:
            write_png(prepare_image(image, size_px), target)
    except DECODING_ERRORS as error:
        return f'{path}: {error}'
    return None


def _some(names: Sequence[str]) -> str:
    return '; '.join(names[:_MAX_NAMES]) + (f'; and {len(names) - _MAX_NAMES} more' if len(names) > _MAX_NAMES else '')
