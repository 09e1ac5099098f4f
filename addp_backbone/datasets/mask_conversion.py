"""Writes masks of other kinds (black and white, colours, other ids) as class ids, beside the data, never over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from addp_backbone.datasets.findings import Findings, Progress, bounded_map
from addp_backbone.datasets.masks import SegmentationSplit
from addp_backbone.files.image_limits import open_image
from addp_backbone.files.images import DECODING_ERRORS, write_png

BINARY, COLOURS = 'binary', 'colours'
VOID = 255


@dataclass(frozen=True)
class MaskConversion:
    """How masks become class ids.

    Attributes:
        kind: :data:`BINARY` (0 stays, all else becomes 1), :data:`COLOURS` (RGB values become the index of their
            class), or '' for ids that only need ``mapping``.
        palette: RGB of each class, for :data:`COLOURS`.
        mapping: Old to new values, applied last; what is not listed stays.
    """

    kind: str = ''
    palette: Sequence[Sequence[int]] = ()
    mapping: Mapping[int, int] = field(default_factory=dict)

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Reads a mask and converts it.

        Args:
            path: An image file of any lossless format.

        Returns:
            (H, W) class ids.

        Raises:
            ValueError: If it cannot be read, is lossy, or has values or colours that have no class.
        """
        try:
            with open_image(path) as image:
                if image.format in ('JPEG', 'MPO'):
                    raise ValueError('is a JPEG, whose compression changes values and colours: export PNG')
                image.load()
                values = self._ids(image)
        except DECODING_ERRORS as error:
            raise ValueError(str(error)) from error
        if values.max(initial=0) > VOID or values.min(initial=0) < 0:
            raise ValueError(f'has values from {values.min()} to {values.max()} after conversion, wanted 0 to {VOID}')
        return values.astype(np.uint8)

    def _ids(self, image: Image.Image) -> NDArray[np.int64]:
        if self.kind == COLOURS:
            values = _by_colour(np.asarray(image.convert('RGB')), self.palette)
        else:
            pixels = np.asarray(image if image.mode in ('1', 'L', 'P', 'I', 'I;16', 'I;16B') else image.convert('RGB'))
            if pixels.ndim == 3:
                if (pixels != pixels[..., :1]).any():
                    raise ValueError('has colours: give --convert colours and a class list with a palette')
                pixels = pixels[..., 0]
            values = pixels.astype(np.int64)
            values = (values > 0).astype(np.int64) if self.kind == BINARY else values
        result = values.copy()
        for old, new in self.mapping.items():
            result[values == old] = new
        return result


def convert_masks(
    splits: Sequence[SegmentationSplit],
    conversion: MaskConversion,
    mask_suffix: str,
    out_dir: Path,
    findings: Findings,
    num_workers: int = 1,
    progress: Progress | None = None,
) -> list[SegmentationSplit]:
    """Converts all masks.

    Args:
        splits: The data set.
        conversion: How.
        mask_suffix: How names of masks end.
        out_dir: Gets a folder for each split, with PNGs of the same names and the ending of ``mask_suffix`` made
            ``.png``.
        findings: Takes masks that cannot be converted.
        num_workers: Threads.
        progress: Wraps an iterable (second argument: its length).

    Returns:
        The splits with the folders of the converted masks.
    """
    result = []
    for split in splits:
        folder = out_dir / split.name
        paths = sorted(split.mask_dir.rglob(f'*{mask_suffix}'))

        def convert(path: Path, split: SegmentationSplit = split, folder: Path = folder) -> str | None:
            name = path.relative_to(split.mask_dir).as_posix().removesuffix(mask_suffix)
            try:
                write_png(conversion(path), folder / f'{name}{png_suffix(mask_suffix)}')
            except ValueError as problem:
                return str(problem)
            return None

        errors = bounded_map(convert, paths, num_workers)
        for path, error in zip(paths, progress(errors, len(paths)) if progress else errors, strict=True):
            if error:
                findings.error('mask not converted', path, '', error)
        result.append(SegmentationSplit(split.name, split.image_dir, folder))
    return result


def png_suffix(mask_suffix: str) -> str:
    """How the names of converted masks end: ``_mask.tif`` becomes ``_mask.png``."""
    return str(Path(f'x{mask_suffix}').with_suffix('.png'))[1:]


def read_mapping(words: Sequence[str]) -> dict[int, int]:
    """Reads ``OLD=NEW`` words; ``NEW`` may be ``void``.

    Raises:
        ValueError: If a word is something else.
    """
    mapping = {}
    for word in words:
        old, _, new = word.partition('=')
        if not old.isdigit() or not (new.isdigit() or new == 'void'):
            raise ValueError(f'--map {word}: wanted OLD=NEW, numbers from 0 to {VOID}, or OLD=void')
        mapping[int(old)] = VOID if new == 'void' else int(new)
    return mapping


def _by_colour(pixels: NDArray[np.uint8], palette: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Class of each pixel by its colour.

    Raises:
        ValueError: If two classes have one colour, or a colour has no class; with the colours and their pixels.
    """
    codes = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    wanted = np.array([red * 65536 + green * 256 + blue for red, green, blue in palette], np.int64)
    if len(set(wanted.tolist())) < len(wanted):
        raise ValueError('two classes of the palette have one colour')
    found, counts = np.unique(codes, return_counts=True)
    unknown = [
        f'({code >> 16}, {code >> 8 & 255}, {code & 255}) {n} px'
        for code, n in sorted(zip(found.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])
        if code not in set(wanted.tolist())
    ]
    if unknown:
        raise ValueError(
            f'has colours of no class: {"; ".join(unknown[:5])}; add them to the palette of the class list'
        )
    order = np.argsort(wanted)
    return order[np.searchsorted(wanted[order], codes)]
