"""Which images and videos a prediction is asked for, without the results of earlier predictions."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from addp_backbone.files.images import IMAGE_ENDINGS, is_image_name
from addp_backbone.predict.videos import is_stream, is_video_name, without_password
from addp_backbone.predict.web import DownloadError, URLsNotAllowedError, check_url, is_url

OVERLAY_FOLDER, LABEL_MAP_FOLDER, LABELME_FOLDER = 'overlays', 'label_maps', 'labelme'
RESULT_FOLDERS = (OVERLAY_FOLDER, LABEL_MAP_FOLDER, 'instance_maps', LABELME_FOLDER)
RECORDS_FILE, LINES_FILE = 'predictions.json', 'predictions.jsonl'
_APPLE_DOUBLE = '._'  # beside every file that macOS copies to foreign file systems; no images


def find_images(sources: Sequence[str | Path], out: str | Path | None = None) -> dict[Path, str]:
    """Finds image files: :func:`find_sources` without videos and URLs.

    Args:
        sources: Files, folders or glob patterns.
        out: Folder that the results are written to.

    Returns:
        Path -> name without ending, as in :func:`find_sources`.

    Raises:
        ValueError: If a source has no image, or is a video or URL.
    """
    names, videos = find_sources(sources, out)
    if videos:
        raise ValueError(f'{videos[0]}: is a video, wanted images')
    return {Path(source): name for source, name in names.items()}


def find_sources(
    sources: Sequence[str | Path],
    out: str | Path | None = None,
    done: Mapping[str, str] | None = None,
    allow_urls: bool = False,
) -> tuple[dict[str, str], list[str]]:
    """Finds image files, videos and URLs; a folder gives its images only.

    What predictions wrote is never found: neither in ``out`` where that lies in a folder of images, nor in the
    sub-folders for results beside the ``predictions.json`` of an earlier one.

    Args:
        sources: Files, folders, glob patterns, URLs of http or https, ``camera:N``, streams.
        out: Folder that the results are written to.
        done: Source -> name of images that have one already (an earlier run's); of a frame of a video ``VIDEO#NUMBER``
            -> ``NAME/NUMBER``.
        allow_urls: Whether URLs and streams of the network may be among the sources.

    Returns:
        Source -> name without ending, unique also where upper and lower case are one, with sub-folders of a folder
        given; in the order of the sources, each sorted. And those that are videos, whose names are folders'.

    Raises:
        ValueError: If a source has no image, or is a URL that is not allowed or no URL.
    """
    given = dict(done or {})
    taken = _Names(given.values())
    for key, name in list(given.items()):
        video, _, number = key.rpartition('#')
        if number.isdecimal() and is_video_name(video):
            given[video] = name.rpartition('/')[0]
            taken.videos.add(given[video].casefold())
    found: dict[str, str] = {}
    seen: set[str] = set()  # a file counts once, whether it is given by a relative path or not
    videos: list[str] = []
    for source in map(str, sources):
        root = Path(source)
        for item in _items_of(source, None if out is None else Path(out), allow_urls):
            place = item if is_stream(item) or is_url(item) else os.path.normpath(Path(item).absolute())
            if place in seen:
                continue
            seen.add(place)
            if is_stream(item) or (is_video_name(item) and not is_url(item)):
                videos.append(item)
                found[item] = given.get(item) or taken.add_video(_name_of(item, root))
            else:
                found[item] = given.get(item) or taken.add(_name_of(item, root))
    return found, videos


def _items_of(source: str, out: Path | None, allow_urls: bool) -> list[str]:
    """The images and videos that one source means."""
    if is_stream(source) or is_url(source):
        if is_url(source) and not allow_urls:
            raise URLsNotAllowedError(without_password(source))
        if not is_stream(source):
            try:
                check_url(source)
            except DownloadError as error:
                raise ValueError(f'{source}: {error}') from error
            if is_video_name(urlsplit(source).path):
                raise ValueError(f'{source}: is a video on the web: fetch the file, and give that')
        return [source]
    paths = [str(path) for path in _images_of(source, out)]
    if not paths:
        kinds = ', '.join(IMAGE_ENDINGS)
        raise ValueError(
            f'{source}: no such image'
            + (
                f' ({kinds}) in this folder'
                if Path(source).is_dir()
                else ', video, folder with images or glob pattern that matches one'
            )
        )
    return paths


def _name_of(item: str, root: Path) -> str:
    """The name that results of an image should have: its file's without ending, below a folder given."""
    if is_stream(item) or is_url(item):
        last = unquote(urlsplit(item).path.rpartition('/')[2] if is_url(item) else item)
        return re.sub(r'[^\w.-]+', '_', Path(last).stem).strip('._') or 'image'
    return (Path(item).relative_to(root) if root.is_dir() else Path(Path(item).name)).with_suffix('').as_posix()


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
        self.videos: set[str] = set()  # folders that frames are numbered in
        for name in names:
            self._take(name.casefold())

    def add(self, name: str) -> str:
        """The name, or the first of ``NAME_2``, ``NAME_3`` ... that is free; folders called like a file get a ``_``."""
        *folders, last = name.split('/')
        for depth in range(len(folders)):
            while '/'.join(folders[: depth + 1]).casefold() in self.files | self.videos:
                folders[depth] += '_'
        base = candidate = '/'.join((*folders, last))
        number = 2
        while any(f'{candidate}.png'.casefold() in taken for taken in (self.files, self.folders)):
            candidate, number = f'{base}_{number}', number + 1
        self._take(candidate.casefold())
        return candidate

    def add_video(self, name: str) -> str:
        """A folder for frames: the name, or the first of ``NAME_2``, ``NAME_3`` ... in which nothing else lies."""
        candidate, number = name, 2
        while candidate.casefold() in self.folders | self.files:
            candidate, number = f'{name}_{number}', number + 1
        self.videos.add(candidate.casefold())
        self._take(f'{candidate}/frame'.casefold())
        return candidate

    def _take(self, name: str) -> None:
        self.files.add(f'{name}.png')
        self.folders.update(_parents(name))


def _parents(name: str) -> list[str]:
    return [parent.as_posix() for parent in Path(name).parents if parent.name]
