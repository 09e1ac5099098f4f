"""Which images a prediction is asked for: files, folders and patterns, without the results of earlier predictions."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path

from addp_backbone.files.images import IMAGE_ENDINGS, is_image_name

OVERLAY_FOLDER, LABEL_MAP_FOLDER = 'overlays', 'label_maps'
RESULT_FOLDERS = (OVERLAY_FOLDER, LABEL_MAP_FOLDER)
RECORDS_FILE, LINES_FILE = 'predictions.json', 'predictions.jsonl'
_APPLE_DOUBLE = '._'  # beside every file that macOS copies to foreign file systems; no images


def find_images(
    sources: Sequence[str | Path], out: str | Path | None = None, names: Mapping[Path, str] | None = None
) -> dict[Path, str]:
    """Finds image files.

    What predictions wrote is never found: neither in ``out`` where that lies in a folder of images, nor in the
    sub-folders ``overlays`` and ``label_maps`` beside the ``predictions.json`` of an earlier one.

    Args:
        sources: Files, folders or glob patterns.
        out: Folder that the results are written to.
        names: Path -> name of images that have one already (an earlier run's).

    Returns:
        Path -> name without ending, unique also where upper and lower case are one, with sub-folders of a folder given;
        in the order of the sources, each sorted.

    Raises:
        ValueError: If a source has no image.
    """
    given = dict(names or {})
    taken = _Names(given.values())
    found: dict[Path, str] = {}
    for source in map(str, sources):
        root = Path(source)
        paths = list(_images_of(source, None if out is None else Path(out)))
        if not paths:
            raise ValueError(
                f'{source}: no such image'
                + (
                    f' ({", ".join(IMAGE_ENDINGS)}) in this folder'
                    if root.is_dir()
                    else ', folder with images or glob pattern that matches one'
                )
            )
        for path in paths:
            if path not in found:
                name = path.relative_to(root) if root.is_dir() else Path(path.name)
                found[path] = given.get(path) or taken.add(name.with_suffix('').as_posix())
    return found


def _images_of(source: str, out: Path | None) -> Iterator[Path]:
    """The images that one source means, sorted."""
    root = Path(source)
    if root.is_file():
        yield root
    elif root.is_dir():
        yield from sorted(_walk(root, out))
    else:
        fixed = Path(*takewhile(lambda part: not glob.has_magic(part), root.parts))
        is_result = cache(lambda folder: _is_result_folder(folder, out))
        for path in map(Path, sorted(glob.glob(source, recursive=True))):  # noqa: PTH207  the pattern may be absolute
            below = [folder for folder in path.parents if folder != fixed and folder.is_relative_to(fixed)]
            if path.is_file() and not path.name.startswith(_APPLE_DOUBLE) and not any(map(is_result, below)):
                yield path


def _walk(root: Path, out: Path | None) -> Iterator[Path]:
    """The images of a folder and its sub-folders, in any order."""
    for folder, children, files in os.walk(root):
        children[:] = [child for child in children if not _is_result_folder(Path(folder, child), out)]
        for file in files:
            path = Path(folder, file)
            if is_image_name(file) and not file.startswith(_APPLE_DOUBLE) and path.is_file():
                yield path


def _is_result_folder(folder: Path, out: Path | None) -> bool:
    """Whether a folder within a source holds what a prediction wrote."""
    if out is not None and folder.resolve() in (out.resolve(), *(out.resolve() / name for name in RESULT_FOLDERS)):
        return True
    return folder.name in RESULT_FOLDERS and any(
        (folder.parent / name).is_file() for name in (RECORDS_FILE, LINES_FILE)
    )


class _Names:
    """Names of results, unique as files ``NAME.png`` and beside the folders that other names lie in."""

    def __init__(self, names: Collection[str]) -> None:
        self.files: set[str] = set()
        self.folders: set[str] = set()
        for name in names:
            self._take(name.casefold())

    def add(self, name: str) -> str:
        """The name, or the first of ``NAME_2``, ``NAME_3`` ... that is free; folders called like a file get a ``_``."""
        *folders, last = name.split('/')
        for depth in range(len(folders)):
            while '/'.join(folders[: depth + 1]).casefold() in self.files:
                folders[depth] += '_'
        base = candidate = '/'.join((*folders, last))
        number = 2
        while any(f'{candidate}.png'.casefold() in taken for taken in (self.files, self.folders)):
            candidate, number = f'{base}_{number}', number + 1
        self._take(candidate.casefold())
        return candidate

    def _take(self, name: str) -> None:
        self.files.add(f'{name}.png')
        self.folders.update(_parents(name))


def _parents(name: str) -> list[str]:
    return [parent.as_posix() for parent in Path(name).parents if parent.name]
