"""Validates masks of COCO files, polygons and run-length codes, before pycocotools or OpenCV see them.

Both trust what they are given: a code whose runs are too short makes pycocotools loop or return memory garbage, and a
coordinate of 1e9 takes all memory. Checks, training and evaluation all ask :func:`segmentation_problem`.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_POLYGON_VALUES = 6  # three corners
MAX_OUTSIDE_SIDES = 4  # coordinates farther outside, in sides of the image, are no rounding
_NUMBER_TYPES = {int, float}
_MAX_CHUNKS = 7  # of 5 bits: pycocotools' counts have 32


def segmentation_problem(segmentation: Any, width: int, height: int) -> str | None:
    """What is wrong with a mask.

    Args:
        segmentation: The ``segmentation`` of an annotation that has one.
        width: Of its image, in pixels.
        height: Of its image, in pixels.

    Returns:
        What was got and what was wanted; None if the mask can be decoded. Polygons of fewer than three corners beside
        a valid one are no problem: they are left out everywhere.
    """
    if isinstance(segmentation, list):
        return _polygons_problem(segmentation, width, height)
    if isinstance(segmentation, dict):
        return _code_problem(segmentation, width, height)
    return f'a {type(segmentation).__name__}, wanted a list of polygons or a run-length code'


def valid_polygons(polygons: list[Any]) -> list[list[float]]:
    """Those polygons that have three corners or more; the others have no area."""
    return [p for p in polygons if isinstance(p, list) and len(p) >= MIN_POLYGON_VALUES]


def segmentation_bounds(segmentation: list[Any] | dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of a valid mask in pixels; None if it is empty."""
    if isinstance(segmentation, list):
        values = np.fromiter(chain.from_iterable(valid_polygons(segmentation)), np.float64)
        xs, ys = values[::2], values[1::2]
        return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())
    height = segmentation['size'][0]
    counts = run_lengths(segmentation['counts'])
    assert counts is not None
    ends = np.cumsum(counts)
    starts, stops = ends[:-1:2], ends[1::2]  # runs of ones, column by column
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not len(starts):
        return None
    columns = starts // height, (stops - 1) // height
    wraps = columns[0] != columns[1]
    top = 0 if wraps.any() else int((starts % height).min())
    bottom = height if wraps.any() else int(((stops - 1) % height).max()) + 1
    return float(columns[0].min()), float(top), float(columns[1].max()) + 1.0, float(bottom)


def segmentation_area(segmentation: list[Any] | dict[str, Any]) -> float:
    """Pixels of a valid mask: the sum of its polygons' areas, or of the runs of ones."""
    if isinstance(segmentation, dict):
        counts = run_lengths(segmentation['counts'])
        assert counts is not None
        return float(counts[1::2].sum())
    area = 0.0
    for polygon in valid_polygons(segmentation):
        xs, ys = np.asarray(polygon[::2], np.float64), np.asarray(polygon[1::2], np.float64)
        area += abs(float(xs @ np.roll(ys, -1) - ys @ np.roll(xs, -1))) / 2
    return area


def run_lengths(counts: Any) -> NDArray[np.int64] | None:
    """Run lengths of a code, of zeros and ones in turn; None if it is malformed.

    Args:
        counts: A list of lengths, or the text (or bytes) of pycocotools' compressed form: six bits a character, the
            sixth says that another follows; from the fourth length on the difference to the last but one is stored.
    """
    if isinstance(counts, list):
        if not set(map(type, counts)) <= {int} or any(not 0 <= n < 2**32 for n in counts):
            return None
        return np.asarray(counts, np.int64)
    try:
        raw = counts.encode('ascii') if isinstance(counts, str) else bytes(counts)
    except (UnicodeEncodeError, TypeError, ValueError):
        return None
    chunks = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(chunks):
        return np.zeros(0, np.int64)
    last = (chunks & 0x20) == 0
    if chunks.min() < 0 or chunks.max() > 63 or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    begins = np.concatenate(([0], ends[:-1] + 1))
    number = np.cumsum(last) - last
    position = np.arange(len(chunks)) - begins[number]
    if position.max() >= _MAX_CHUNKS:
        return None
    values = np.zeros(len(ends), np.int64)
    np.add.at(values, number, (chunks & 0x1F) << (5 * position))
    negative = (chunks[ends] & 0x10) != 0
    values[negative] -= np.int64(1) << (5 * (position[ends][negative] + 1))
    for first in (1, 2):  # stored as differences to the last but one
        values[first::2] = np.cumsum(values[first::2])
    return None if values.min() < 0 else values


def _polygons_problem(polygons: list[Any], width: int, height: int) -> str | None:
    usable = 0
    low, high = -MAX_OUTSIDE_SIDES * max(width, height), (MAX_OUTSIDE_SIDES + 1) * max(width, height)
    for polygon in polygons:
        if not isinstance(polygon, list):
            return f'polygons hold a {type(polygon).__name__}, wanted lists of numbers (x, y, x, y, ...)'
        types = set(map(type, polygon))
        if not types <= _NUMBER_TYPES:
            names = ', '.join(sorted(kind.__name__ for kind in types - _NUMBER_TYPES))
            return f'a polygon holds {names}, wanted numbers (x, y, x, y, ...)'
        if len(polygon) % 2:
            return f'a polygon has {len(polygon)} numbers, wanted pairs (x, y, x, y, ...)'
        if not polygon:
            continue
        if not (low <= min(polygon) and max(polygon) <= high) or any(v != v for v in polygon):
            return f'a polygon has coordinates that are NaN or far outside the image of {width} x {height}'
        usable += len(polygon) >= MIN_POLYGON_VALUES
    return None if usable else 'no polygon has three corners or more (x, y, x, y, ...)'


def _code_problem(code: dict[str, Any], width: int, height: int) -> str | None:
    size, counts = code.get('size'), code.get('counts')
    if size != [height, width] or not isinstance(counts, (list, str)):
        shown = str(size)[:40]
        return f'run-length code of size {shown}, wanted counts and size [{height}, {width}]'
    lengths = run_lengths(counts)
    if lengths is None:
        return 'run-length code: malformed counts, wanted lengths of 0 or more or the text that pycocotools writes'
    if lengths.sum() != width * height:
        return f'run-length code covers {lengths.sum()} pixels, wanted {width} x {height} = {width * height}'
    return None
