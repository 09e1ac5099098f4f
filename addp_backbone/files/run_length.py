"""COCO's run-length code of masks, as plain Python values that JSON can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_masks


def encode_mask(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> dict[str, Any]:
    """Encodes a mask; ``pycocotools.mask.decode`` turns the code back into pixels.

    Args:
        mask: (H, W), bool or uint8 with the values 0 and 1.

    Returns:
        ``{'size': [H, W], 'counts': str}``.
    """
    code = coco_masks.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {'size': [int(n) for n in code['size']], 'counts': code['counts'].decode('ascii')}


def encode_region(pixels: NDArray[np.bool_], left: int, top: int, size: tuple[int, int]) -> dict[str, Any]:
    """Encodes a mask that is empty outside a rectangle, in memory for the rectangle only.

    Args:
        pixels: (h, w) bool, the rectangle.
        left: Its first column in the mask.
        top: Its first row in the mask.
        size: (H, W) of the mask.

    Returns:
        What :func:`encode_mask` returns for the whole mask.
    """
    height, width = size
    columns = np.pad(np.asarray(pixels, bool).T.view(np.int8), ((0, 0), (1, 1)))
    column, row = np.nonzero(np.diff(columns, axis=1))
    bounds = (left + column) * height + top + row  # where runs begin and end in turn, column after column
    goes_on = bounds[1:] == bounds[:-1]  # a run down to the last row that begins again in the next column's first
    kept = np.ones(len(bounds), bool)
    kept[1:] &= ~goes_on
    kept[:-1] &= ~goes_on
    counts = np.diff(bounds[kept], prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    code = coco_masks.frPyObjects({'size': [height, width], 'counts': counts.tolist()}, height, width)
    return {'size': [height, width], 'counts': code['counts'].decode('ascii')}
