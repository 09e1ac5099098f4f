"""Checks a detection data set: COCO JSON and images. Every finding names file and record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from addp_backbone.datasets.box_frames import check_frames
from addp_backbone.datasets.coco_file import CocoFile, Identifier, Record, read_coco
from addp_backbone.datasets.findings import Findings, Progress, bounded_map
from addp_backbone.datasets.orientation import TURNED, may_be_labelled_as_stored, turned_hint
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
        classes: Category names in the order of the training file, which is how models number them.
        has_masks: Whether the boxes have masks.
        num_train_images: Number of training images.
        files: What was read, by split.
    """

    classes: tuple[str, ...]
    has_masks: bool
    num_train_images: int
    files: dict[str, CocoFile] = field(default_factory=dict)


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
    read = {split.name: read_coco(split.ann_file, findings, image_dir=split.image_dir) for split in splits}
    files = {name: coco for name, coco in read.items() if coco is not None}
    return check_files(splits, files, findings, num_workers, box_only, progress)


def check_files(
    splits: list[DetectionSplit],
    files: dict[str, CocoFile],
    findings: Findings,
    num_workers: int = 1,
    box_only: bool = False,
    progress: Progress | None = None,
) -> DetectionData:
    """Checks COCO files that were read already, by split; the rest as for :func:`check_detection`."""
    _compare_categories(files, splits, findings)
    has_masks = not box_only and any('segmentation' in a for coco in files.values() for a in coco.annotations)
    for split in splits:
        if split.name in files:
            coco = files[split.name]
            if box_only:
                coco.annotations = [_without_mask(record) for record in coco.annotations]
            _check_split(split, coco, has_masks, findings)
            _check_images(split, coco, num_workers, findings, progress)
    _compare_images(splits, files, findings)
    first = files.get(splits[0].name)
    if first is None:
        return DetectionData((), has_masks, 0, files)
    return DetectionData(tuple(first.categories.values()), has_masks, len(first.images), files)


def _without_mask(record: Record) -> Record:
    return {key: value for key, value in record.items() if key != 'segmentation'}


def _compare_categories(files: dict[str, CocoFile], splits: list[DetectionSplit], findings: Findings) -> None:
    """Classes are matched by name, so that ids and order may differ between files."""
    first = files.get(splits[0].name)
    for split in splits[1:]:
        other = files.get(split.name)
        if first is None or other is None:
            continue
        ours, theirs = list(first.categories.values()), list(other.categories.values())
        if set(ours) != set(theirs):
            findings.error(
                'categories differ',
                split.ann_file,
                'categories',
                f'{theirs}, in {splits[0].ann_file}: {ours}; the names must be the same (order and ids may differ)',
            )


def _check_split(split: DetectionSplit, coco: CocoFile, has_masks: bool, findings: Findings) -> None:
    file = split.ann_file
    images = {record['id']: record for record in coco.images}
    for name, count in Counter(record['file_name'] for record in coco.images).items():
        if count > 1:
            findings.warn('file name twice', file, f'image {name!r}', f'{count} records; their boxes are not joined')
    histogram = dict.fromkeys(coco.categories.values(), 0)
    for record in coco.annotations:
        histogram[coco.categories[record['category_id']]] += 1
        image = images[record['image_id']]
        where = f'annotation {record["id"]} of image {image["id"]} ({image["file_name"]})'
        _check_box(file, where, record, image, findings)
        if has_masks and 'segmentation' not in record:
            findings.error('box without mask', file, where, 'other boxes have masks: complete them, or give --box-only')
    findings.histogram[split.name] = dict(histogram)
    for name, boxes in histogram.items():
        if not boxes:
            findings.warn('class without boxes', file, f'category {name!r}', 'no box')
    check_frames(file, coco.annotations, images, findings)
    _check_totals(split, coco.annotations, findings)
    _report_empty_images(split, coco.annotations, images, findings)


def _report_empty_images(
    split: DetectionSplit, annotations: list[Record], images: dict[Identifier, Record], findings: Findings
) -> None:
    with_boxes = {record['image_id'] for record in annotations}
    for image_id, record in images.items():
        if image_id not in with_boxes:
            findings.warn(
                'image without annotation',
                split.ann_file,
                f'image {image_id} ({record["file_name"]})',
                'left out of training' if split.name == 'train' else 'every detection in it counts as wrong',
            )


def _check_totals(split: DetectionSplit, annotations: list[Record], findings: Findings) -> None:
    """Training needs objects that are no crowds and whose boxes have a pixel."""
    crowds = sum(record['iscrowd'] for record in annotations)
    small = sum(not record['iscrowd'] and min(record['bbox'][2:]) < 1 for record in annotations)
    if annotations and crowds + small == len(annotations):
        reasons = [f'all {crowds} are crowd'] if crowds == len(annotations) else []
        reasons += [f'all {small} boxes are under one pixel'] if small == len(annotations) else []
        reasons = reasons or [f'{crowds} are crowd, {small} boxes are under one pixel']
        findings.error('no usable object', split.ann_file, 'annotations', f'0 usable objects: {reasons[0]}')
    elif crowds > len(annotations) / 2:
        detail = f'{crowds} of {len(annotations)} objects are crowd: regions that are neither trained on nor scored'
        findings.warn('mostly crowd', split.ann_file, 'annotations', detail)


def _check_box(file: Path, where: str, record: Record, image: Record, findings: Findings) -> None:
    box = record['bbox']
    x, y, width, height = box
    shown = f'bbox {box}, image {image["width"]} x {image["height"]}'
    if min(width, height) == 0 and record['iscrowd']:
        return
    if width <= 0 or height <= 0:
        findings.error('box empty or inverted', file, where, f'bbox {box}: width and height must be positive')
        return
    if width < 1 or height < 1:
        findings.warn('box too small', file, where, f'bbox {box}: boxes under one pixel are left out of training')
    if x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0:
        findings.error('box outside the image', file, where, shown)
    elif (
        min(x, y) < -OUTSIDE_TOLERANCE_PX
        or x + width > image['width'] + OUTSIDE_TOLERANCE_PX
        or y + height > image['height'] + OUTSIDE_TOLERANCE_PX
    ):
        hint = '; is it [x1, y1, x2, y2]? COCO has [x, y, width, height]' if x < width and y < height else ''
        findings.warn('box partly outside the image', file, where, shown + hint)


def _check_images(
    split: DetectionSplit, coco: CocoFile, num_workers: int, findings: Findings, progress: Progress | None
) -> None:
    records = coco.images
    infos: Iterable[ImageInfo] = bounded_map(
        inspect_image, (split.image_dir / r['file_name'] for r in records), num_workers
    )
    for record, info in zip(records, progress(infos, len(records)) if progress else infos, strict=True):
        path = split.image_dir / record['file_name']
        label = f'image {record["id"]} of {split.ann_file.name}'
        if info.error:
            findings.error(
                'image missing' if info.error == 'does not exist' else 'image unreadable', path, label, info.error
            )
        elif (record['width'], record['height']) != (info.width, info.height):
            sizes = f'file {info.width} x {info.height}, JSON {record["width"]} x {record["height"]}'
            findings.error('image size differs', path, label, sizes + turned_hint(info))
        elif may_be_labelled_as_stored(info):
            findings.warn('EXIF turns the image', path, label, TURNED.format(info.orientation))


def _compare_images(splits: list[DetectionSplit], files: dict[str, CocoFile], findings: Findings) -> None:
    paths = {
        split.name: {(split.image_dir / r['file_name']).resolve() for r in files[split.name].images}
        for split in splits
        if split.name in files
    }
    if 'train' in paths and 'val' in paths:
        for path in sorted(paths['train'] & paths['val']):
            findings.warn('image in train and val', path, '', 'results on it tell nothing about new images')
