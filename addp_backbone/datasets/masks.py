"""Checks a segmentation data set: image folder, mask folder, class list. Every finding names file and record."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from addp_backbone.datasets.findings import Findings, Progress, bounded_map
from addp_backbone.datasets.mask_values import (
    NUM_VALUES,
    MaskValues,
    check_values,
    count_edges,
    decide_void,
    describe_values,
)
from addp_backbone.datasets.orientation import TURNED, may_be_labelled_as_stored, turned_hint
from addp_backbone.files.images import IMAGE_ENDINGS, ImageInfo, inspect_image, is_image_name, read_mask

MAX_CLASSES = 254


@dataclass(frozen=True)
class SegmentationSplit:
    """A folder of images and one of masks with the same names.

    Attributes:
        name: 'train' or 'val', for messages.
        image_dir: Folder of images, searched with its sub-folders.
        mask_dir: Folder of masks.
    """

    name: str
    image_dir: Path
    mask_dir: Path


@dataclass(frozen=True)
class SegmentationData:
    """What the leaf config needs to know.

    Attributes:
        void: :data:`VOID_ZERO` or :data:`VOID_255`.
        img_suffix: How image names end.
        mask_suffix: How mask names end.
        num_train_images: Number of training images.
        table: Lines that show how the values are read: value, class, share of the pixels, masks, an example.
    """

    void: str
    img_suffix: str
    mask_suffix: str
    num_train_images: int
    table: tuple[str, ...] = ()


def read_classes(path: Path) -> tuple[list[str], list[list[int]] | None]:
    """Reads a class list: text with one name a line, or JSON.

    The JSON is a list of names or ``{"classes": [...], "palette": [[r, g, b], ...]}``.

    Returns:
        Names, and colours if there are any.

    Raises:
        ValueError: If the file is missing or something else, or a name occurs twice.
    """
    try:
        text = path.read_text(encoding='utf-8-sig')  # some editors begin with a byte order mark
        content = (
            json.loads(text) if path.suffix == '.json' else [line.strip() for line in text.splitlines() if line.strip()]
        )
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'{path}: cannot be read as a class list: {error}') from error
    names, palette = (content.get('classes'), content.get('palette')) if isinstance(content, dict) else (content, None)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{path}: wanted one class name a line, or JSON ["a", "b"] or {{"classes": ["a", "b"]}}')
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f'{path}: class names occur twice: {twice}')
    if not 2 <= len(names) <= MAX_CLASSES:
        raise ValueError(
            f'{path}: {len(names)} classes, wanted 2 to {MAX_CLASSES} (one object class needs the background as second)'
        )
    if palette is not None and (len(palette) != len(names) or not all(len(color) == 3 for color in palette)):
        raise ValueError(f'{path}: palette must have one [r, g, b] for each of the {len(names)} classes')
    return names, palette


def check_segmentation(
    splits: list[SegmentationSplit],
    classes: list[str],
    findings: Findings,
    void: str = 'auto',
    mask_suffix: str = '.png',
    num_workers: int = 1,
    progress: Progress | None = None,
) -> SegmentationData:
    """Checks a segmentation data set.

    Args:
        splits: The training split first.
        classes: Class names.
        findings: Takes what is found.
        void: :data:`VOID_ZERO`, :data:`VOID_255`, or 'auto' to tell by the values in the masks.
        mask_suffix: How mask names end, after the image's name without its own ending.
        num_workers: Threads that decode.
        progress: Wraps an iterable (second argument: its length).

    Returns:
        What the leaf config needs; only meaningful without errors.
    """
    img_suffix = _image_suffix(splits, findings)
    pixels: list[MaskValues] = []
    num_images = {}
    for split in splits:
        names = (
            sorted(p.relative_to(split.image_dir).as_posix() for p in split.image_dir.rglob(f'*{img_suffix}'))
            if img_suffix
            else []
        )
        num_images[split.name] = len(names)
        _report_stray_masks(split, {name.removesuffix(img_suffix) for name in names}, mask_suffix, findings)
        inspect = partial(_inspect_pair, split, img_suffix, mask_suffix)
        results: Iterable[_Pair] = bounded_map(inspect, names, num_workers)
        for pair in progress(results, len(names)) if progress else results:
            _report_pair(pair, findings)
            if pair.counts is not None:
                assert pair.edges is not None
                pixels.append(MaskValues(split.name, pair.mask, pair.counts, pair.edges))
    if void == 'auto':
        void = decide_void(pixels, len(classes), splits[0].mask_dir, findings)
    check_values(pixels, classes, void, findings)
    table = tuple(describe_values(pixels, classes, void))
    return SegmentationData(void, img_suffix, mask_suffix, num_images.get(splits[0].name, 0), table)


@dataclass(frozen=True)
class _Pair:
    """An image and its mask: what went wrong, or how many pixels have which value."""

    image: Path
    mask: Path
    info: ImageInfo
    mask_error: str | None = None
    mask_size: tuple[int, int] | None = None  # width, height
    counts: NDArray[np.int64] | None = None  # by value, without trailing zeros
    edges: NDArray[np.int64] | None = None  # as counts, of the pixels at a border between values


def _image_suffix(splits: list[SegmentationSplit], findings: Findings) -> str:
    """The one ending of all images (mmseg can serve no more)."""
    suffixes: Counter[str] = Counter()
    for split in splits:
        for folder in (split.image_dir, split.mask_dir):
            if not folder.is_dir():
                findings.error('folder missing', folder, '', f'is no folder (of {split.name})')
        if split.image_dir.is_dir():
            found = Counter(path.suffix for path in split.image_dir.rglob('*') if is_image_name(path.name))
            if not found:
                findings.error('folder empty', split.image_dir, '', f'has no image ({", ".join(IMAGE_ENDINGS)})')
            suffixes += found
    if len(suffixes) > 1:
        listed = ', '.join(f'{count} {suffix}' for suffix, count in suffixes.most_common())
        findings.error(
            'images with several endings',
            splits[0].image_dir,
            '',
            f'{listed}: mmseg reads one; convert or rename the others',
        )
    return suffixes.most_common(1)[0][0] if suffixes else ''


def _inspect_pair(split: SegmentationSplit, img_suffix: str, mask_suffix: str, name: str) -> _Pair:
    image, mask = split.image_dir / name, split.mask_dir / (name.removesuffix(img_suffix) + mask_suffix)
    info = inspect_image(image)
    try:
        values = read_mask(mask)
    except ValueError as error:
        return _Pair(image, mask, info, mask_error=f'{error}{_other_ending(mask, mask_suffix)}')
    if values.min(initial=0) < 0 or values.max(initial=0) >= NUM_VALUES:
        return _Pair(
            image, mask, info, mask_error=f'has values from {values.min()} to {values.max()}, wanted class ids'
        )
    return _Pair(
        image,
        mask,
        info,
        mask_size=(values.shape[1], values.shape[0]),
        counts=np.bincount(values.ravel().astype(np.int64)),
        edges=count_edges(values),
    )


def _other_ending(mask: Path, mask_suffix: str) -> str:
    """For a mask that is not there: the option that names one beside it with another ending."""
    stem = mask.name.removesuffix(mask_suffix)
    others = [] if mask.exists() else [path.name for path in sorted(mask.parent.glob(f'{glob.escape(stem)}[._-]*'))]
    return f'; there is {others[0]}: give --mask-suffix {others[0].removeprefix(stem)}' if others else ''


def _report_pair(pair: _Pair, findings: Findings) -> None:
    if pair.info.error:
        findings.error('image unreadable', pair.image, '', pair.info.error)
    if pair.mask_error:
        kind = 'mask missing' if pair.mask_error.startswith('does not exist') else 'mask unusable'
        findings.error(kind, pair.mask, f'mask of {pair.image.name}', pair.mask_error)
    elif not pair.info.error and pair.mask_size != (pair.info.width, pair.info.height):
        assert pair.mask_size
        findings.error(
            'mask size differs',
            pair.mask,
            f'mask of {pair.image.name}',
            f'mask {pair.mask_size[0]} x {pair.mask_size[1]}, image {pair.info.width} x {pair.info.height}'
            + turned_hint(pair.info),
        )
    elif may_be_labelled_as_stored(pair.info):
        findings.warn('EXIF turns the image', pair.image, '', TURNED.format(pair.info.orientation))


def _report_stray_masks(split: SegmentationSplit, stems: set[str], mask_suffix: str, findings: Findings) -> None:
    for mask in sorted(split.mask_dir.rglob(f'*{mask_suffix}')) if split.mask_dir.is_dir() else []:
        if mask.relative_to(split.mask_dir).as_posix().removesuffix(mask_suffix) not in stems:
            findings.warn('mask without image', mask, '', f'no image of this name in {split.image_dir}')


def sample_pairs(split: SegmentationSplit, data: SegmentationData, count: int) -> list[tuple[Path, Path]]:
    """Images of a split with their masks, evenly spread over the sorted names."""
    images = sorted(split.image_dir.rglob(f'*{data.img_suffix}'))
    chosen = [images[index * len(images) // count] for index in range(min(count, len(images)))]
    stems = [path.relative_to(split.image_dir).as_posix().removesuffix(data.img_suffix) for path in chosen]
    return [(path, split.mask_dir / f'{stem}{data.mask_suffix}') for path, stem in zip(chosen, stems, strict=True)]
