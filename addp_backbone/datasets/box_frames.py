"""Compares an object's box, mask and area with each other and with the image: are they in one frame of pixels?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from addp_backbone.datasets.coco_file import Identifier, Record
from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.segments import segmentation_area, segmentation_bounds

MIN_IOU = 0.5  # of a box and its mask's bounds: annotators' boxes are looser or tighter, but not that much
MIN_PX = 8.0  # smaller objects differ by rounding alone
MAX_AREA_RATIO = 1.05  # of an area and its box
ERROR_SHARE = 0.2  # of the objects; more is no slip of single annotations
Box = tuple[float, float, float, float]  # left, top, right, bottom


def check_frames(file: Path, annotations: list[Record], images: dict[Identifier, Record], findings: Findings) -> None:
    """Reports boxes that are shares of the image, and masks that are not where their boxes are.

    Training makes its boxes from the masks, evaluation compares boxes with boxes, so a difference is a silent wrong
    result. Single differing objects are warnings; if :data:`ERROR_SHARE` of the objects differ it is an error, with a
    guess of the frame that the masks are in.

    Args:
        file: The JSON, for messages.
        annotations: Validated records.
        images: Validated images by id.
        findings: Takes what is found.
    """
    boxes = [record for record in annotations if min(record['bbox'][2:]) > 0]
    shares = sum(max(record['bbox']) <= 1 for record in boxes)
    if boxes and shares > len(boxes) / 2:
        findings.error(
            'boxes are shares',
            file,
            'annotations',
            f'{shares} of {len(boxes)} boxes have no value over 1: shares of the image? COCO has pixels',
        )
        return
    guesses: Counter[str] = Counter()
    compared, details = 0, []
    for record in boxes:
        if 'segmentation' not in record:
            continue
        image = images[record['image_id']]
        x, y, width, height = record['bbox']
        box, bounds = (x, y, x + width, y + height), segmentation_bounds(record['segmentation'])
        where = f'annotation {record["id"]} of image {image["id"]} ({image["file_name"]})'
        if bounds is None or _outside(bounds, image):
            findings.error('mask outside the image', file, where, f'mask from {_shown(bounds)}, no pixel in the image')
            continue
        _check_area(file, where, record, findings)
        if min(width, height) < MIN_PX:
            continue
        compared += 1
        if _iou(box, bounds) < MIN_IOU:
            guesses[_guess_frame(box, bounds, image)] += 1
            details.append((where, f'box {_shown(box)}, mask {_shown(bounds)}'))
    if len(details) > ERROR_SHARE * compared:
        guess, _ = guesses.most_common(1)[0]
        for where, detail in details:
            findings.error('box and mask differ', file, where, f'{detail}{guess}')
    else:
        for where, detail in details:
            findings.warn('box and mask differ', file, where, detail)


def _check_area(file: Path, where: str, record: Record, findings: Findings) -> None:
    """Areas decide which objects count as small, medium and large."""
    _, _, width, height = record['bbox']
    if record['area'] > MAX_AREA_RATIO * width * height + 1 and not record['iscrowd']:
        true = segmentation_area(record['segmentation'])
        detail = f'area {record["area"]:g}, box {width:g} x {height:g}, mask of {true:g} pixels'
        findings.warn('area larger than the box', file, where, detail)


def _outside(bounds: Box, image: Record) -> bool:
    left, top, right, bottom = bounds
    return right <= 0 or bottom <= 0 or left >= image['width'] or top >= image['height']


def _guess_frame(box: Box, bounds: Box, image: Record) -> str:
    """'; polygons look like ...', if the mask's bounds fit the box in another frame."""
    width, height = image['width'], image['height']
    frames = {
        'shares of the image': (width, height),
        'per cent of the image': (width / 100, height / 100),
        'thousandths of the image': (width / 1000, height / 1000),
    }
    for name, (scale_x, scale_y) in frames.items():
        scaled = (bounds[0] * scale_x, bounds[1] * scale_y, bounds[2] * scale_x, bounds[3] * scale_y)
        if _iou(box, scaled) >= MIN_IOU:
            return f'; polygons look like {name}'
    if _iou(box, (bounds[1], bounds[0], bounds[3], bounds[2])) >= MIN_IOU:
        return '; polygons look like y, x instead of x, y'
    ratio_x = (box[2] - box[0]) / max(bounds[2] - bounds[0], 1e-9)
    ratio_y = (box[3] - box[1]) / max(bounds[3] - bounds[1], 1e-9)
    scaled = (bounds[0] * ratio_x, bounds[1] * ratio_y, bounds[2] * ratio_x, bounds[3] * ratio_y)
    if abs(ratio_x / ratio_y - 1) < 0.1 and _iou(box, scaled) >= MIN_IOU:
        return f'; polygons look scaled by {1 / ratio_x:.3g}, as of an image of another size'
    return '; they lie in different places'


def _iou(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    common = max(wide, 0.0) * max(high, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return common / max(areas - common, 1e-9)


def _shown(box: Box | None) -> str:
    return 'nothing' if box is None else '({:.4g}, {:.4g}) to ({:.4g}, {:.4g})'.format(*box)
