"""Predictions as files of labelme, to be corrected there and trained on (``tools/new_dataset.py`` reads them)."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_masks

from addp_backbone.files.images import encode_png
from addp_backbone.predict.detections import Detections

VERSION = '5.5.0'  # of labelme, whose fields these are
TOLERANCE_PX = 0.5  # an outline is simplified by at most this
MIN_AREA_PX = 1.0


def labelme_file(
    detections: Detections, target: Path, image: Path | None, pixels: NDArray[np.uint8] | None = None
) -> bytes:
    """The content of a file of labelme.

    A mask becomes the outlines of its parts, which share a ``group_id``; holes are filled, as labelme's polygons have
    none, and an outline deviates from the pixels by half a pixel at most. Objects without masks become rectangles. The
    score stands in ``description``.

    Args:
        detections: The objects.
        target: Where the file will lie; the path of the image is relative to it.
        image: The image file, which labelme opens; None puts ``pixels`` into the file, as ``imageData``.
        pixels: (H, W, 3) uint8 RGB.

    Raises:
        ValueError: If there is neither a file nor pixels.
    """
    if image is None and pixels is None:
        raise ValueError('a file of labelme needs the image: its path, or its pixels')
    embedded = base64.b64encode(encode_png(pixels)).decode() if image is None and pixels is not None else None
    content: dict[str, Any] = {
        'version': VERSION,
        'flags': {},
        'shapes': list(_shapes(detections)),
        'imagePath': f'{target.stem}.png' if image is None else _relative(image.resolve(), target.resolve().parent),
        'imageData': embedded,
        'imageHeight': detections.height,
        'imageWidth': detections.width,
    }
    return json.dumps(content, indent=1).encode()


def mask_outlines(mask: NDArray[np.uint8], tolerance_px: float = TOLERANCE_PX) -> list[NDArray[np.float64]]:
    """The outer outlines of a mask, along the edges of its pixels.

    Args:
        mask: (H, W) uint8 of 0 and 1.
        tolerance_px: How far an outline may deviate from the edges.

    Returns:
        (K, 2) x, y for each part, K of 3 or more: pixel (0, 0) covers [0, 1] x [0, 1].
    """
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return []
    lattice = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)  # a pixel is 3 x 3 points half a pixel apart
    lattice[1::2, 1::2] = mask[top : top + height, left : left + width]
    lattice = cv2.dilate(lattice, np.ones((3, 3), np.uint8)).astype(np.uint8)
    outlines = []
    for contour in cv2.findContours(lattice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        simple = cv2.approxPolyDP(contour, 2 * tolerance_px, closed=True)[:, 0].astype(np.float64)
        if len(simple) >= 3 and cv2.contourArea(simple.astype(np.float32)) / 4 >= MIN_AREA_PX:
            outlines.append(simple / 2 + (left, top))
    return outlines


def _shapes(detections: Detections) -> Iterator[dict[str, Any]]:
    for index, (box, score, label) in enumerate(
        zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    ):
        shape = {
            'label': detections.classes.names[label],
            'description': f'score {score:.4f}',
            'flags': {},
            'mask': None,
        }
        if detections.masks is None:
            corners = [[box[0], box[1]], [box[2], box[3]]]
            yield shape | {'points': corners, 'group_id': None, 'shape_type': 'rectangle'}
            continue
        outlines = mask_outlines(coco_masks.decode(detections.masks[index]))
        for outline in outlines:
            group = index if len(outlines) > 1 else None
            yield shape | {'points': outline.tolist(), 'group_id': group, 'shape_type': 'polygon'}


def _relative(path: Path, folder: Path) -> str:
    """A path seen from a folder, with forward slashes; absolute where there is no way (another drive)."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.as_posix()
