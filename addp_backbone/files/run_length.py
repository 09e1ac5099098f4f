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
