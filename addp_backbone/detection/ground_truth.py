"""Boxes and masks of a COCO image's objects after a random flip, size and crop, as detectron2 makes them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_masks

from addp_backbone.detection.geometry import Geometry
from addp_backbone.detection.instance_masks import Cutout, Polygons
from addp_backbone.detection.polygons import clip_polygons, read_polygons


def transform_boxes(boxes: list[list[float]], geometry: Geometry) -> np.ndarray:
    """Flips, resizes and clips boxes.

    Args:
        boxes: x1, y1, x2, y2 of each object in the original image.
        geometry: What was drawn.

    Returns:
        (N, 4) float32 x1, y1, x2, y2, clipped to the cropped image.
    """
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 2)
    moved = (geometry.move(corners) - geometry.corner).reshape(-1, 2, 2)
    clipped = np.sort(moved, axis=1).clip(0, geometry.crop_size)
    return clipped.reshape(-1, 4).astype(np.float32)


def transform_masks(instances: list[dict[str, Any]], geometry: Geometry) -> list[Polygons | Cutout]:
    """Flips, resizes and crops the masks of an image's objects.

    Args:
        instances: Each with ``mask``: a list of polygons or an RLE, as COCO has them.
        geometry: What was drawn.

    Returns:
        For each object its polygons, clipped to the window, or the cut-out of its RLE; an empty list if nothing of it
        is in the crop, or if it has no polygon of three vertices.

    Raises:
        KeyError: If an object has no segmentation.
        ValueError: If a segmentation is neither polygons nor an RLE of the image's size, or has coordinates that are
            not finite.
    """
    objects: list[Polygons | Cutout] = [[] for _ in instances]
    polygons, owners = [], []
    for index, instance in enumerate(instances):
        if 'mask' not in instance:
            raise KeyError(
                'an object has no segmentation, wanted polygons or RLE; for data with boxes only set with_mask=False '
                'in LargeScaleJitter and take a Faster R-CNN config'
            )
        if isinstance(instance['mask'], list):
            found = read_polygons(instance['mask'])
            polygons += [geometry.move(polygon) for polygon in found]
            owners += [index] * len(found)
        else:
            objects[index] = _transform_rle(instance['mask'], geometry)
    (x, y), (width, height) = geometry.corner, geometry.window
    for owner, parts in zip(owners, clip_polygons(polygons, (x, y, x + width, y + height)), strict=True):
        item = objects[owner]
        assert isinstance(item, list)
        item += [part - geometry.corner for part in parts]
    return objects


def _transform_rle(segmentation: dict[str, Any], geometry: Geometry) -> Polygons | Cutout:
    """An RLE's pixels in the crop, sampled at the centres of the new pixels; an empty list if there are none."""
    width, height = geometry.size
    rle = _compressed(segmentation, width, height)
    left, top, box_w, box_h = (int(value) for value in coco_masks.toBbox(rle))
    if not box_w or not box_h:
        return []
    source = coco_masks.decode(rle)[top : top + box_h, left : left + box_w]
    if geometry.flip:
        source, left = source[:, ::-1], width - left - box_w
    (x, y), (crop_w, crop_h) = geometry.corner, geometry.crop_size
    columns = sample_centres(geometry.new_size[0], width)[x : x + crop_w]
    rows = sample_centres(geometry.new_size[1], height)[y : y + crop_h]
    first_x, end_x = np.searchsorted(columns, (left, left + box_w)).tolist()
    first_y, end_y = np.searchsorted(rows, (top, top + box_h)).tolist()
    if first_x == end_x or first_y == end_y:
        return []
    pixels = np.take(np.take(source, columns[first_x:end_x] - left, axis=1), rows[first_y:end_y] - top, axis=0)
    box_x, box_y, box_w, box_h = cv2.boundingRect(pixels)  # rows and columns at the border may be empty now
    pixels = np.ascontiguousarray(pixels[box_y : box_y + box_h, box_x : box_x + box_w])
    return Cutout(pixels, first_x + box_x, first_y + box_y)


def _compressed(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    """The RLE in the form that pycocotools decodes.

    Raises:
        ValueError: If it is not an RLE of an image of this size.
    """
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get('counts'), list | str | bytes):
        raise ValueError(
            f'a segmentation is a {type(segmentation).__name__}, wanted polygons, or RLE with counts and size'
        )
    if list(segmentation.get('size', ())) != [height, width]:
        raise ValueError(
            f'an RLE is of size {segmentation.get("size")}, but its image has height {height} and width {width}: '
            'correct the annotation file, or the image if it was resized or turned'
        )
    if isinstance(segmentation['counts'], list):
        return coco_masks.frPyObjects(segmentation, height, width)
    return segmentation


def sample_centres(new_length: int, length: int) -> np.ndarray:
    """Which source pixel the centre of each pixel lies in, of a side resized to ``new_length``.

    Sums up steps as Pillow's nearest neighbour does, so that ties fall to the same side.

    Args:
        new_length: Pixels of the resized side.
        length: Pixels of the original side.

    Returns:
        (new_length,) int64, ascending.
    """
    steps = np.full(new_length, length / new_length)
    steps[0] *= 0.5
    return np.minimum(np.add.accumulate(steps).astype(np.int64), length - 1)
