"""Polygons of objects: clipped to a crop, and rasterised within boxes; many at a time, with detectron2's results.

Sources: ``CropTransform.apply_polygons`` in fvcore's ``transforms/transform.py``, and
``rasterize_polygons_within_box`` in detectron2's ``structures/masks.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from pycocotools import mask as coco_masks

MIN_NUMBERS = 6  # of a polygon: three vertices
MIN_SIDE_PX = 0.1  # detectron2: a box's side counts as no less when polygons are scaled by it


def read_polygons(segmentation: Sequence[Sequence[float]]) -> list[np.ndarray]:
    """Reads a COCO segmentation of polygons.

    Args:
        segmentation: A list of ``[x, y, x, y, ...]`` in pixels for each part of the object.

    Returns:
        An (n, 2) float64 array of x, y for each part. Parts with fewer than three vertices, or with half a vertex, are
        left out, as detectron2 does.

    Raises:
        ValueError: If a coordinate is not a finite number.
    """
    valid = [numbers for numbers in segmentation if len(numbers) >= MIN_NUMBERS and len(numbers) % 2 == 0]
    polygons = [np.array(numbers, dtype=np.float64).reshape(-1, 2) for numbers in valid]
    if not all(np.isfinite(polygon).all() for polygon in polygons):
        raise ValueError('a polygon has a coordinate that is nan or infinite, wanted pixels: correct the annotation')
    return polygons


def clip_polygons(polygons: Sequence[np.ndarray], window: tuple[float, float, float, float]) -> list[list[np.ndarray]]:
    """Cuts polygons to a window.

    A polygon that intersects itself is mended first (``buffer(0)``), which may leave a part of it only; holes that
    mending or clipping makes are filled. Points and lines that are left are dropped.

    Args:
        polygons: (n, 2) float64 arrays of x, y.
        window: x1, y1, x2, y2.

    Returns:
        For each polygon, what is left of it: a list of none, one or several polygons, in the same coordinates. A valid
        polygon inside the window is returned as it was given.
    """
    if not polygons:
        return []
    lengths = np.array([len(polygon) for polygon in polygons])
    vertices = np.concatenate(polygons)
    starts = np.cumsum(lengths) - lengths
    lows, highs = np.minimum.reduceat(vertices, starts), np.maximum.reduceat(vertices, starts)
    outside = ((highs <= window[:2]) | (lows >= window[2:])).any(axis=1)
    clipped: list[list[np.ndarray]] = [[] for _ in polygons]
    seen = np.flatnonzero(~outside)
    if not len(seen):
        return clipped
    rings = shapely.linearrings(
        vertices[np.repeat(~outside, lengths)], indices=np.repeat(np.arange(len(seen)), lengths[seen])
    )
    shapes = shapely.polygons(rings)
    inside = ((lows[seen] >= window[:2]) & (highs[seen] <= window[2:])).all(axis=1)
    whole = inside & shapely.is_valid(shapes)
    for index in seen[whole]:
        clipped[index] = [polygons[index]]
    cut = shapely.intersection(shapely.buffer(shapes[~whole], 0.0), shapely.box(*window))
    parts, sources = shapely.get_parts(cut, return_index=True)
    usable = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & shapely.is_valid(parts)
    usable &= ~shapely.is_empty(parts)
    for part, index in zip(parts[usable], seen[~whole][sources[usable]], strict=True):
        ring = shapely.get_coordinates(shapely.get_exterior_ring(part))
        clipped[index].append(ring[:-1])  # the last vertex repeats the first
    return clipped


def rasterize_in_boxes(objects: Sequence[Sequence[np.ndarray]], boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draws each object as it looks in its box, stretched to ``size``: the targets of a mask head.

    All polygons go through pycocotools in one call, and come back in another.

    Args:
        objects: K objects, each a list of polygons, (n, 2) float64 arrays of x, y.
        boxes: (K, 4) float32 x1, y1, x2, y2.
        size: Height and width of the targets in pixels.

    Returns:
        (K, height, width) bool; a pixel is set if any of the object's polygons covers it.
    """
    height, width = size
    targets = np.zeros((len(objects), height, width), dtype=bool)
    counts = np.array([len(polygons) for polygons in objects], dtype=np.int64)
    flat = [polygon for polygons in objects for polygon in polygons]
    if not flat:
        return targets
    lengths = [len(polygon) for polygon in flat]
    box = np.repeat(np.repeat(np.arange(len(objects)), counts), lengths)  # of each vertex
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], MIN_SIDE_PX).astype(np.float64)
    vertices = (np.concatenate(flat) - boxes[box, :2]) * ((width, height) / sides)[box]
    ends = 2 * np.cumsum(lengths)
    numbers = np.split(vertices.reshape(-1), ends[:-1])
    drawn = coco_masks.decode(coco_masks.frPyObjects(numbers, height, width)).transpose(2, 1, 0)  # its memory's order
    filled = np.flatnonzero(counts)
    if len(drawn) > len(filled):
        drawn = np.maximum.reduceat(drawn, np.cumsum(counts)[filled] - counts[filled], axis=0)
    targets[filled] = drawn.transpose(0, 2, 1)
    return targets
