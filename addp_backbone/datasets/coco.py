"""Checks a detection data set: COCO JSON and images. Every finding names file and record."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from addp_backbone.datasets.findings import Findings, Progress, bounded_map
from addp_backbone.files.images import ImageInfo, inspect_image

OUTSIDE_TOLERANCE_PX = 1.0  # boxes rounded outwards are common and harmless


@dataclass(frozen=True)
class DetectionSplit:
    """One COCO file and its images.

    Attributes:
        name: 'train' or 'val', for messages.
        ann_file: The JSON.
        image_dir: The folder its file names start from.
    """

    name: str
    ann_file: Path
    image_dir: Path


@dataclass(frozen=True)
class DetectionData:
    """What the leaf config needs to know.

    Attributes:
        classes: Category names in the JSON's order, which is how mmdet numbers them.
        has_masks: Whether the boxes have masks.
        num_train_images: Number of training images.
    """

    classes: tuple[str, ...]
    has_masks: bool
    num_train_images: int


def check_detection(
    splits: list[DetectionSplit],
    findings: Findings,
    num_workers: int = 1,
    box_only: bool = False,
    progress: Progress | None = None,
) -> DetectionData:
    """Checks a detection data set.

    Args:
        splits: The training split first.
        findings: Takes what is found.
        num_workers: Threads that decode images.
        box_only: Ignore masks.
        progress: Wraps an iterable (second argument: its length).

    Returns:
        What the leaf config needs; only meaningful without errors.
    """
    contents = {split.name: _load(split, findings) for split in splits}
    loaded = {name: content for name, content in contents.items() if content is not None}
    categories = {name: _categories(content, split_file(splits, name), findings) for name, content in loaded.items()}
    _compare_categories(categories, splits, findings)
    has_masks = not box_only and any(_has_mask(a) for content in loaded.values() for a in content['annotations'])
    for split in splits:
        if split.name in loaded:
            _check_split(split, loaded[split.name], categories[split.name], has_masks, findings)
            _check_images(split, loaded[split.name], num_workers, findings, progress)
    _compare_images(splits, loaded, findings)
    first = splits[0].name
    return DetectionData(
        tuple(categories.get(first, {}).values()), has_masks, len(loaded.get(first, {'images': []})['images'])
    )


def split_file(splits: list[DetectionSplit], name: str) -> Path:
    """The JSON of a split."""
    return next(split.ann_file for split in splits if split.name == name)


def _load(split: DetectionSplit, findings: Findings) -> dict[str, list[dict[str, Any]]] | None:
    """Reads a JSON; None if its outer form is wrong."""
    kind = 'annotation file cannot be used'
    try:
        content = json.loads(split.ann_file.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        findings.error(kind, split.ann_file, '', f'cannot be read as JSON: {error}')
        return None
    for key in ('images', 'annotations', 'categories'):
        value = content.get(key) if isinstance(content, dict) else None
        if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
            findings.error(
                kind, split.ann_file, '', f'has no list of objects {key!r}: wanted the COCO instances format'
            )
            return None
    if not content['images'] or not content['annotations']:
        findings.error(kind, split.ann_file, '', 'has no images or no annotations')
        return None
    return _with_needed_keys(split.ann_file, content, findings)


def _with_needed_keys(
    file: Path, content: dict[str, list[dict[str, Any]]], findings: Findings
) -> dict[str, list[dict[str, Any]]]:
    """Leaves out (and reports) records without the keys that mmdet reads."""
    needed = {
        'images': ('id', 'file_name', 'width', 'height'),
        'categories': ('id', 'name'),
        'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    }
    complete: dict[str, list[dict[str, Any]]] = {}
    for key, names in needed.items():
        complete[key] = []
        for position, record in enumerate(content[key]):
            missing = [name for name in names if name not in record]
            if missing:
                findings.error('key missing', file, f'{key}[{position}]', f'has no {", ".join(missing)}')
            else:
                complete[key].append(record)
    return complete


def _categories(content: dict[str, list[dict[str, Any]]], file: Path, findings: Findings) -> dict[int, str]:
    categories: dict[int, str] = {}
    for record in content['categories']:
        if record['id'] in categories or record['name'] in categories.values():
            findings.error(
                'category twice', file, f'category {record["id"]}', f'id or name {record["name"]!r} occurs before'
            )
        categories.setdefault(record['id'], str(record['name']))
    if not categories:
        findings.error('annotation file cannot be used', file, '', 'has no categories')
    return categories


def _compare_categories(
    categories: dict[str, dict[int, str]], splits: list[DetectionSplit], findings: Findings
) -> None:
    for split in splits[1:]:
        first, other = categories.get(splits[0].name), categories.get(split.name)
        if first is not None and other is not None and list(first.values()) != list(other.values()):
            findings.error(
                'categories differ',
                split.ann_file,
                'categories',
                f'{list(other.values())}, in {splits[0].ann_file}: '
                f'{list(first.values())}; names and order must be the same, classes are numbered by them',
            )


def _check_split(
    split: DetectionSplit,
    content: dict[str, list[dict[str, Any]]],
    categories: dict[int, str],
    has_masks: bool,
    findings: Findings,
) -> None:
    file = split.ann_file
    images: dict[Any, dict[str, Any]] = {}
    for record in content['images']:
        if record['id'] in images:
            findings.error(
                'image id twice',
                file,
                f'image {record["id"]}',
                f'{record["file_name"]} and {images[record["id"]]["file_name"]}',
            )
        images.setdefault(record['id'], record)
    for name, count in Counter(record['file_name'] for record in content['images']).items():
        if count > 1:
            findings.warn('file name twice', file, f'image {name!r}', f'{count} records; their boxes are not joined')
    histogram = dict.fromkeys(categories.values(), 0)
    seen: set[Any] = set()
    for record in content['annotations']:
        label = f'annotation {record["id"]}'
        if record['id'] in seen:
            findings.error('annotation id twice', file, label, 'ids must be unique')
        seen.add(record['id'])
        if record['category_id'] not in categories:
            findings.error(
                'category id outside the classes',
                file,
                label,
                f'category_id {record["category_id"]!r}, there are {sorted(categories)}',
            )
        else:
            histogram[categories[record['category_id']]] += 1
        if record['image_id'] not in images:
            findings.error('image id unknown', file, label, f'image_id {record["image_id"]!r} is not among the images')
        else:
            _check_box(file, label, record, images[record['image_id']], findings)
            if has_masks:
                _check_segmentation(file, label, record, images[record['image_id']], findings)
    findings.histogram[split.name] = dict(histogram)
    for name, boxes in histogram.items():
        if not boxes:
            findings.warn('class without boxes', file, f'category {name!r}', 'no box')
    with_boxes = {record['image_id'] for record in content['annotations']}
    for image_id, record in images.items():
        if image_id not in with_boxes:
            findings.warn(
                'image without annotation',
                file,
                f'image {image_id} ({record["file_name"]})',
                'left out of training' if split.name == 'train' else 'every detection in it counts as wrong',
            )


def _check_box(file: Path, label: str, record: dict[str, Any], image: dict[str, Any], findings: Findings) -> None:
    box, where = record['bbox'], f'{label} of image {image["id"]} ({image["file_name"]})'
    if not (
        isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
    ):
        findings.error('box malformed', file, where, f'bbox {box!r}, wanted [x, y, width, height]')
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        findings.error('box empty or inverted', file, where, f'bbox {box}: width and height must be positive')
        return
    if width < 1 or height < 1 or not record['area'] > 0:
        findings.warn(
            'box too small', file, where, f'bbox {box}, area {record["area"]}: mmdet ignores boxes under one pixel'
        )
    if x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0:
        findings.error('box outside the image', file, where, f'bbox {box}, image {image["width"]} x {image["height"]}')
    elif (
        min(x, y) < -OUTSIDE_TOLERANCE_PX
        or x + width > image['width'] + OUTSIDE_TOLERANCE_PX
        or y + height > image['height'] + OUTSIDE_TOLERANCE_PX
    ):
        findings.warn(
            'box partly outside the image',
            file,
            where,
            f'bbox {box}, image {image["width"]} x {image["height"]}'
            + ('; is it [x1, y1, x2, y2]? COCO has [x, y, width, height]' if x < width and y < height else ''),
        )


def _has_mask(record: dict[str, Any]) -> bool:
    return bool(record.get('segmentation'))


def _check_segmentation(
    file: Path, label: str, record: dict[str, Any], image: dict[str, Any], findings: Findings
) -> None:
    where, mask = f'{label} of image {image["id"]} ({image["file_name"]})', record.get('segmentation')
    if not mask:
        findings.error('box without mask', file, where, 'other boxes have masks: complete them, or give --box-only')
    elif isinstance(mask, list):
        bad = [polygon for polygon in mask if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2]
        if len(bad) == len(mask):
            findings.error('mask malformed', file, where, 'no polygon has three corners or more (x, y, x, y, ...)')
        elif bad:
            findings.warn(
                'polygon ignored', file, where, f'{len(bad)} of {len(mask)} polygons have fewer than three corners'
            )
    elif isinstance(mask, dict):
        size, counts = mask.get('size'), mask.get('counts')
        if not isinstance(counts, (list, str)) or size != [image['height'], image['width']]:
            findings.error(
                'mask malformed',
                file,
                where,
                f'run-length code of size {size}, wanted counts and size [{image["height"]}, {image["width"]}]',
            )
    else:
        findings.error('mask malformed', file, where, f'a {type(mask).__name__}, wanted polygons or a run-length code')


def _check_images(
    split: DetectionSplit,
    content: dict[str, list[dict[str, Any]]],
    num_workers: int,
    findings: Findings,
    progress: Progress | None,
) -> None:
    records = content['images']
    infos: Iterable[ImageInfo] = bounded_map(
        inspect_image, (split.image_dir / str(r['file_name']) for r in records), num_workers
    )
    for record, info in zip(records, progress(infos, len(records)) if progress else infos, strict=True):
        path = split.image_dir / str(record['file_name'])
        if info.error:
            findings.error(
                'image missing' if info.error == 'does not exist' else 'image unreadable',
                path,
                f'image {record["id"]} of {split.ann_file.name}',
                info.error,
            )
        elif (record['width'], record['height']) != (info.width, info.height):
            hint = (
                '; its EXIF orientation turns it: boxes and masks must be those of the turned image'
                if info.transposed
                else ''
            )
            findings.error(
                'image size differs',
                path,
                f'image {record["id"]} of {split.ann_file.name}',
                f'file {info.width} x {info.height}, JSON {record["width"]} x {record["height"]}{hint}',
            )


def _compare_images(
    splits: list[DetectionSplit], loaded: dict[str, dict[str, list[dict[str, Any]]]], findings: Findings
) -> None:
    paths = {
        split.name: {(split.image_dir / str(r['file_name'])).resolve() for r in loaded[split.name]['images']}
        for split in splits
        if split.name in loaded
    }
    if 'train' in paths and 'val' in paths:
        for path in sorted(paths['train'] & paths['val']):
            findings.warn('image in train and val', path, '', 'results on it tell nothing about new images')
