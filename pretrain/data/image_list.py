"""Finds images on disk (class folders, lists of files, or any folder) and keeps a million paths in little memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from addp_backbone.files.images import IMAGE_ENDINGS, is_image_name
from addp_backbone.runtime.config_checks import LaunchError

_MAX_SHOWN = 5


class PathTable:
    """An immutable list of paths in two numpy arrays.

    Worker processes are forks: they share these arrays, whereas every string of a list would be copied to each of them
    as soon as its reference count changes.

    Args:
        paths: Paths of any kind; they are stored as bytes.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self.bytes = np.frombuffer(b''.join(encoded), dtype=np.uint8)
        self.ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f'path {index} of {len(self)}')
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.bytes[start : self.ends[index]].tobytes())


class ImageList(NamedTuple):
    """Images with or without classes.

    Attributes:
        paths: Paths relative to the folder that was searched.
        labels: (N,) int64 indices into ``classes``, or None.
        classes: Class names in the order of the labels, or None.
    """

    paths: list[str]
    labels: np.ndarray | None
    classes: tuple[str, ...] | None


def find_images(
    root: Path, data_prefix: str, ann_file: str, labels: bool, classes: Sequence[str] | str | None
) -> ImageList:
    """Finds the images of a data set, in the way that its options say.

    Args:
        root: Folder of the data.
        data_prefix: Folder within ``root`` that holds the images.
        ann_file: File that lists the images, relative to ``root``; '' searches the folder.
        labels: Whether images have classes, from the list or from the first level of folders.
        classes: Class names in the order of their labels, or a text file; None takes them from the data.

    Raises:
        LaunchError: If the folder or the list does not exist, or one of the functions below finds fault with it.
    """
    folder, list_path = root / data_prefix, root / ann_file
    for path, option in ((folder, 'data_root and data_prefix'), (list_path, 'ann_file')):
        if not path.exists():
            raise LaunchError(
                f'{path.absolute()} does not exist: put the data there, or change {option} of the data set'
            )
    names = read_classes(classes, root)
    if ann_file:
        return list_file(list_path, labels, names)
    return list_class_folders(folder, names) if labels else list_folder(folder)


def list_folder(folder: Path) -> ImageList:
    """Lists every image below a folder, at any depth, in alphabetical order.

    Raises:
        LaunchError: If there is none.
    """
    paths = list(_walk(folder))
    if not paths:
        raise LaunchError(f'{folder} holds no image at any depth; wanted files that end in {", ".join(IMAGE_ENDINGS)}')
    return ImageList(paths, None, None)


def list_class_folders(folder: Path, classes: Sequence[str] | None = None) -> ImageList:
    """Lists a tree whose first level of folders are classes.

    Args:
        folder: The tree's root.
        classes: Class names in the order of their labels; None takes the folders' names in alphabetical order.

    Raises:
        LaunchError: If there are no class folders, folder names and ``classes`` differ, or a class has no image.
    """
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))
    if not found:
        raise LaunchError(
            f'{folder} has no folders, wanted one per class (folder/<class>/<image>). For a list of files set '
            'ann_file; for images without classes set labels=False'
        )
    names = tuple(classes or found)
    if set(names) != set(found):
        raise LaunchError(
            f'{folder}: the class folders differ from `classes`. Without a folder: {_some(set(names) - set(found))}. '
            f'Not in `classes`: {_some(set(found) - set(names))}'
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        of_class = [f'{name}/{path}' for path in _walk(folder / name)]
        if not of_class:
            raise LaunchError(f'{folder / name} holds no image: add some, or remove the folder of class {name!r}')
        paths += of_class
        labels += [label] * len(of_class)
    return ImageList(paths, np.array(labels, dtype=np.int64), names)


def list_file(ann_file: Path, with_labels: bool, classes: Sequence[str] | None = None) -> ImageList:
    """Reads a list like ImageNet's ``meta/train.txt``: one ``path`` or ``path label`` per line, labels from 0.

    Args:
        ann_file: The list; empty lines are ignored.
        with_labels: Whether lines end in a label.
        classes: Class names; None names the classes by their numbers.

    Raises:
        LaunchError: If the list is empty, a line has no label, or a label lies outside of the classes; with the line's
            number.
    """
    paths: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(ann_file.read_text(encoding='utf-8').splitlines(), start=1):
        if not line.strip():
            continue
        path, *rest = line.strip().rsplit(None, 1)
        label = rest[0] if rest else ''
        if not label.isdigit():
            path, label = line.strip(), ''
        if with_labels and not label:
            raise LaunchError(
                f'{ann_file}, line {number}: wanted "path label" with the label a number from 0, got {line!r}'
            )
        if with_labels and classes is not None and int(label) >= len(classes):
            raise LaunchError(
                f'{ann_file}, line {number}: label {label}, but there are {len(classes)} classes '
                f'(0..{len(classes) - 1}): {_some(classes)}'
            )
        paths.append(path)
        labels.append(int(label or 0))
    if not paths:
        raise LaunchError(f'{ann_file} is empty, wanted one image a line')
    if not with_labels:
        return ImageList(paths, None, None)
    names = tuple(classes) if classes is not None else tuple(str(label) for label in range(max(labels) + 1))
    return ImageList(paths, np.array(labels, dtype=np.int64), names)


def read_classes(classes: Sequence[str] | str | None, root: Path) -> tuple[str, ...] | None:
    """Class names from a config: names, or a text file (relative to ``root``) with one name a line.

    Raises:
        LaunchError: If the file does not exist, or a name occurs twice.
    """
    if classes is None:
        return None
    if isinstance(classes, str):
        file = root / classes
        if not file.is_file():
            raise LaunchError(
                f'classes={classes!r}: {file} does not exist; wanted a text file with one class name a line, or a list'
            )
        classes = [line.strip() for line in file.read_text(encoding='utf-8').splitlines() if line.strip()]
    doubled = {name for name, count in Counter(classes).items() if count > 1}
    if doubled:
        raise LaunchError(f'class names occur twice: {_some(doubled)}')
    return tuple(classes)


def check_same_classes(train: Sequence[str] | None, val: Sequence[str] | None) -> None:
    """Compares the classes of two data sets.

    Raises:
        LaunchError: If they differ, with the names; also if only their order does.
    """
    if train is None or val is None or tuple(train) == tuple(val):
        return
    only_train, only_val = set(train) - set(val), set(val) - set(train)
    if not only_train and not only_val:
        first = next(i for i, (a, b) in enumerate(zip(train, val, strict=True)) if a != b)
        raise LaunchError(
            f'train and val have the same {len(train)} classes in different orders: class {first} is {train[first]!r} '
            f'in train and {val[first]!r} in val. Give both the same `classes`'
        )
    raise LaunchError(
        f'train has {len(train)} classes, val {len(val)}. Only in train: {_some(only_train)}. '
        f'Only in val: {_some(only_val)}. '
        'Add or remove class folders, or give both data sets the same `classes`'
    )


def _walk(folder: Path) -> Iterator[str]:
    """Yields paths of images relative to ``folder``; follows links, enters no folder twice, skips hidden files."""
    seen: set[str] = set()
    for current, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith('.'))
        if real in seen:
            continue
        seen.add(real)
        inner = os.path.relpath(current, folder)
        for name in sorted(files):
            if is_image_name(name) and not name.startswith('.'):
                yield name if inner == '.' else f'{inner}/{name}'


def _some(names: Sequence[str] | set[str]) -> str:
    listed = sorted(names) if isinstance(names, set) else list(names)
    return (
        ', '.join(listed[:_MAX_SHOWN]) + (f' and {len(listed) - _MAX_SHOWN} more' if len(listed) > _MAX_SHOWN else '')
    ) or 'none'
