"""detectron2's large-scale jitter and mask targets as plain loops over objects, with Pillow and shapely."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks
from shapely import geometry


@dataclass
class Jittered:
    """What training sees of an image: pixels, and of each object label, box and polygons or bitmap."""

    image: np.ndarray
    labels: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    masks: list[Any] = field(default_factory=list)


def jitter(
    image: np.ndarray,
    instances: list[dict[str, Any]],
    target: tuple[int, int],
    ratios: tuple[float, float],
    flip_prob: float = 0.5,
) -> Jittered:
    """Draws from numpy's global generator, then transforms; ``target``: height and width of scale 1 and window."""
    flip = np.random.uniform(0, 1.0) < flip_prob
    scale = np.random.uniform(ratios[0], ratios[1])
    height, width = image.shape[:2]
    to_target = np.minimum(target[0] * scale / height, target[1] * scale / width)
    new_h, new_w = (int(side) for side in np.round(np.multiply((height, width), to_target)))
    spare = np.maximum(np.subtract((new_h, new_w), target), 0)
    y0, x0 = (int(offset) for offset in np.round(np.multiply(spare, np.random.uniform(0.0, 1.0))))

    def move_pixels(pixels: np.ndarray, kind: Image.Resampling) -> np.ndarray:
        flipped = np.ascontiguousarray(pixels[:, ::-1]) if flip else pixels
        resized = np.asarray(Image.fromarray(flipped).resize((new_w, new_h), kind))
        return resized[y0 : y0 + target[0], x0 : x0 + target[1]]

    result = Jittered(move_pixels(image, Image.Resampling.BILINEAR))
    for instance in instances:
        if instance['ignore_flag']:
            continue
        if isinstance(instance['mask'], list):
            mask: Any = []
            for numbers in instance['mask']:
                if len(numbers) >= 6 and len(numbers) % 2 == 0:
                    x, y = np.array(numbers[0::2], float), np.array(numbers[1::2], float)
                    x = (width - x if flip else x) * (new_w * 1.0 / width)
                    y = y * (new_h * 1.0 / height)
                    mask += clip(np.stack((x, y), axis=1), x0, y0, target)
            box = extents(mask)
        else:
            rle = instance['mask']
            rle = coco_masks.frPyObjects(rle, height, width) if isinstance(rle['counts'], list) else rle
            mask = move_pixels(coco_masks.decode(rle), Image.Resampling.NEAREST)
            ys, xs = np.nonzero(mask)
            box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0.0] * 4, np.float32)
        if box[2] - box[0] > 1e-5 and box[3] - box[1] > 1e-5:
            result.labels.append(instance['bbox_label'])
            result.boxes.append(box)
            result.masks.append(mask)
    return result


def clip(polygon: np.ndarray, x0: int, y0: int, target: tuple[int, int]) -> list[np.ndarray]:
    """The parts of a polygon in the window, in the window's coordinates."""
    window = geometry.box(x0, y0, x0 + target[1], y0 + target[0]).buffer(0.0)
    cut = geometry.Polygon(polygon).buffer(0.0).intersection(window)
    parts = [part for part in getattr(cut, 'geoms', [cut]) if isinstance(part, geometry.Polygon) and not part.is_empty]
    return [np.array(part.exterior.coords)[:-1] - (x0, y0) for part in parts]


def extents(polygons: list[np.ndarray]) -> np.ndarray:
    """x1, y1, x2, y2 of all vertices; a box of no size if there are none."""
    if not polygons:
        return np.zeros(4, np.float32)
    vertices = np.concatenate(polygons).astype(np.float32)
    return np.concatenate((vertices.min(axis=0), vertices.max(axis=0)))


def mask_target(polygons: list[np.ndarray], box: np.ndarray, side: int) -> np.ndarray:
    """(side, side) bool: one object's polygons as they look in one box."""
    scaled = []
    for polygon in polygons:
        x = (polygon[:, 0] - box[0]) * (side / max(float(box[2] - box[0]), 0.1))
        y = (polygon[:, 1] - box[1]) * (side / max(float(box[3] - box[1]), 0.1))
        scaled.append(np.stack((x, y), axis=1).reshape(-1))
    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(scaled, side, side))).astype(bool)


def near_boxes(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Boxes as a detector proposes them: sides and centres off by up to a fifth."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return (boxes + sides * rng.uniform(-0.2, 0.2, boxes.shape)).astype(np.float32)
