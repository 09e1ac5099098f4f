"""Prediction on large images in overlapping tiles, put together as one prediction; memory is that of a tile.

Detections: an object that a tile shows whole is compared with those of other tiles by NMS per class. One that an inner
border of a tile cuts is left out where another tile (or the whole image) shows the same object whole; otherwise its
parts are joined. Two detections are of the same object if their boxes coincide *within what both tiles see*: parts of
one object do, whatever their sizes, while the IoU of a part and the whole may be small.

Segmentation: of each pixel the class from the tile whose centre is nearest, along each axis. mmseg's slide adds up the
scores of overlapping windows instead, which takes memory for all classes of all pixels.

Source of the idea: slicing aided hyper inference (Akyol et al., 2022); the rules for cut objects are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, pairwise, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_masks
from torchvision.ops import nms

from addp_backbone.files.run_length import encode_region
from addp_backbone.predict.class_info import Prediction
from addp_backbone.predict.class_results import ClassMap
from addp_backbone.predict.detections import Detections

MIN_TILE_PX = 32
CUT_SHARE = 0.01  # a box that ends within this share of the tile's side from an inner border may be cut by it
Window = tuple[int, int, int, int]  # x1, y1, x2, y2
Predict = Callable[[NDArray[np.uint8], str], Prediction]
_Boxes = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Tiles:
    """How an image is cut into tiles.

    Attributes:
        size_px: Side of a tile. Images whose sides are no longer are predicted whole.
        overlap: Share of a tile that it has in common with the next, 0 to 0.5. An object that is smaller than the
            overlap is whole in some tile.
        with_whole: Whether detectors also look at the whole image, for objects larger than a tile.
        iou_thr: Above this IoU two boxes of a class are of one object.

    Raises:
        ValueError: If a value is out of range.
    """

    size_px: int
    overlap: float = 0.2
    with_whole: bool = True
    iou_thr: float = 0.5

    def __post_init__(self) -> None:
        if self.size_px < MIN_TILE_PX:
            raise ValueError(f'tiles of {self.size_px} px, wanted {MIN_TILE_PX} px or more')
        if not 0 <= self.overlap <= 0.5:
            raise ValueError(f'an overlap of {self.overlap:g} of a tile, wanted 0 to 0.5')
        if not 0 < self.iou_thr < 1:
            raise ValueError(f'iou_thr={self.iou_thr:g}, wanted a value between 0 and 1')

    def starts(self, length: int) -> list[int]:
        """Where tiles begin along a side; the last one ends with the image."""
        stride = self.size_px - round(self.overlap * self.size_px)
        last = max(length - self.size_px, 0)
        return [*range(0, last, stride), last]

    def windows(self, height: int, width: int) -> list[Window]:
        """x1, y1, x2, y2 of the tiles of an image, row by row."""
        return [
            (x, y, min(x + self.size_px, width), min(y + self.size_px, height))
            for y, x in product(self.starts(height), self.starts(width))
        ]


def predict_in_tiles(predict: Predict, pixels: NDArray[np.uint8], path: str, tiles: Tiles) -> Prediction:
    """Predicts for tiles and puts the results together.

    Args:
        predict: Predicts for (H, W, 3) pixels; the second argument is the path.
        pixels: (H, W, 3) uint8.
        path: The file.
        tiles: How to cut.

    Returns:
        The prediction for the whole image: of ``predict`` where one tile holds it.

    Raises:
        ValueError: If the model neither detects nor segments.
    """
    height, width = pixels.shape[:2]
    windows = tiles.windows(height, width)
    if len(windows) == 1:
        return predict(pixels, path)
    results = ((window, predict(np.ascontiguousarray(_crop(pixels, window)), path)) for window in windows)
    first_window, first = next(results)
    if isinstance(first, ClassMap):
        label_map = np.empty((height, width), first.label_map.dtype)
        for window, part in chain([(first_window, first)], results):
            assert isinstance(part, ClassMap)
            _put(label_map, part.label_map, window, tiles)
        return ClassMap(width, height, label_map, first.classes)
    if not isinstance(first, Detections):
        raise ValueError('tiles are for detection and segmentation, not for classes of a whole image')
    found = []
    for window, part in chain([(first_window, first)], results):
        assert isinstance(part, Detections)
        found.append((window, _in_image(part, window, (height, width))))
    if tiles.with_whole:
        whole = predict(pixels, path)
        assert isinstance(whole, Detections)
        found.append(((0, 0, width, height), whole))
    return merge_detections(found, tiles)


def merge_detections(found: list[tuple[Window, Detections]], tiles: Tiles) -> Detections:
    """Puts detections of several windows of an image together.

    Args:
        found: Window and its detections, which are in the image's frame.
        tiles: ``iou_thr``, and ``size_px``, by which a box counts as cut.

    Returns:
        Detections in the image, each object once, the surest first; ``at_limit`` if it was set in any window.
    """
    image = found[0][1]
    boxes = np.concatenate([one.boxes for _, one in found]).astype(np.float64)
    scores = np.concatenate([one.scores for _, one in found])
    labels = np.concatenate([one.labels for _, one in found])
    windows = np.concatenate([np.tile(np.array(window, np.float64), (len(one.scores), 1)) for window, one in found])
    masks = None if image.masks is None else [mask for _, one in found for mask in one.masks or ()]
    cut = _is_cut(boxes, windows, (image.width, image.height), CUT_SHARE * tiles.size_px)
    groups: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(-scores[members], kind='stable')]
        groups += _objects(members, boxes, scores, windows, cut, tiles.iou_thr)
    groups.sort(key=lambda group: -float(scores[group].max()))
    merged = [_joined(boxes[group]) for group in groups]
    return replace(
        image,
        boxes=np.array(merged, np.float32).reshape(-1, 4),
        scores=np.array([scores[group].max() for group in groups], np.float32),
        labels=np.array([labels[group[0]] for group in groups], np.int64),
        masks=None if masks is None else [_united([masks[index] for index in group]) for group in groups],
        at_limit=any(one.at_limit for _, one in found),
    )


def _objects(
    members: NDArray[np.int64],
    boxes: _Boxes,
    scores: NDArray[np.floating[Any]],
    windows: _Boxes,
    cut: NDArray[np.bool_],
    iou_thr: float,
) -> list[NDArray[np.int64]]:
    """The objects of one class, each as the detections that make it up; ``members`` come with the surest first."""
    whole, parts = members[~cut[members]], members[cut[members]]
    kept = whole[nms(torch.from_numpy(boxes[whole]), torch.from_numpy(scores[whole]).double(), iou_thr).numpy()]
    parts = np.array([i for i in parts if not (_iou_in_both(i, kept, boxes, windows) > iou_thr).any()], dtype=np.int64)
    owner = np.arange(len(parts))
    for position, i in enumerate(parts):
        same = np.flatnonzero(_iou_in_both(i, parts[:position], boxes, windows) > iou_thr)
        for other in np.unique(owner[same]):
            owner[owner == other] = position
    return [kept[k : k + 1] for k in range(len(kept))] + [parts[owner == one] for one in np.unique(owner)]


def _iou_in_both(index: int, others: NDArray[np.int64], boxes: _Boxes, windows: _Boxes) -> NDArray[np.float64]:
    """IoU of one box with others, each clipped to what its window and the other's have in common; 0 in one window."""
    low = np.maximum(windows[index, :2], windows[others, :2])
    high = np.minimum(windows[index, 2:], windows[others, 2:])
    a_low, a_high = np.maximum(boxes[index, :2], low), np.minimum(boxes[index, 2:], high)
    b_low, b_high = np.maximum(boxes[others, :2], low), np.minimum(boxes[others, 2:], high)
    common = np.clip(np.minimum(a_high, b_high) - np.maximum(a_low, b_low), 0, None).prod(axis=1)
    areas = [np.clip(top - bottom, 0, None).prod(axis=1) for bottom, top in ((a_low, a_high), (b_low, b_high))]
    iou = common / np.maximum(areas[0] + areas[1] - common, 1e-9)
    return np.where((windows[others] == windows[index]).all(axis=1), 0.0, iou)


def _is_cut(boxes: _Boxes, windows: _Boxes, size: tuple[int, int], margin: float) -> NDArray[np.bool_]:
    """Which boxes reach an edge of their window that is no edge of the image."""
    edges = np.array([0, 0, *size], np.float64)
    return ((np.abs(boxes - windows) <= margin) & (windows != edges)).any(axis=1)


def _joined(boxes: _Boxes) -> NDArray[np.float64]:
    return np.concatenate((boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)))


def _united(codes: list[dict[str, Any]]) -> dict[str, Any]:
    if len(codes) == 1:
        return codes[0]
    code = coco_masks.merge(codes)
    return {'size': [int(n) for n in code['size']], 'counts': code['counts'].decode('ascii')}


def _in_image(part: Detections, window: Window, size: tuple[int, int]) -> Detections:
    """A tile's detections in the frame of the image of ``size`` (height, width)."""
    x, y = window[:2]
    masks = None
    if part.masks is not None:
        masks = [encode_region(coco_masks.decode(mask).view(bool), x, y, size) for mask in part.masks]
    return replace(
        part, width=size[1], height=size[0], boxes=part.boxes + np.array([x, y, x, y], np.float32), masks=masks
    )


def _put(label_map: NDArray[Any], part: NDArray[Any], window: Window, tiles: Tiles) -> None:
    """Writes the part of a tile's class map whose pixels are nearest to its centre."""
    height, width = label_map.shape
    (left, right), (top, bottom) = (
        _share(tiles.starts(length), start, tiles.size_px, length)
        for start, length in ((window[0], width), (window[1], height))
    )
    x, y = window[:2]
    label_map[top:bottom, left:right] = part[top - y : bottom - y, left - x : right - x]


def _share(starts: list[int], start: int, size_px: int, length: int) -> tuple[int, int]:
    """First and last (exclusive) pixel along a side that belong to the tile that begins at ``start``."""
    bounds = [0, *((a + b + size_px) // 2 for a, b in pairwise(starts)), length]
    index = starts.index(start)
    return bounds[index], bounds[index + 1]


def _crop(pixels: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    x1, y1, x2, y2 = window
    return pixels[y1:y2, x1:x2]
