"""Reading the images and masks of a probe, one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from addp_backbone.datasets.mask_values import VOID_ZERO
from addp_backbone.files.images import read_image, read_mask
from addp_backbone.files.mask_areas import VOID


def read_resized(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image as it is shown, resized to (width, height) by Pillow's bicubic filter; (height, width, 3), RGB."""
    return np.asarray(read_image(path).resize(size, Image.Resampling.BICUBIC))


def read_labels(path: Path, void: str, num_classes: int) -> NDArray[np.uint8]:
    """Reads a mask of a data set that was checked.

    Args:
        path: The file.
        void: How void is stored.
        num_classes: Length of the class list.

    Returns:
        (height, width): class ids from 0, :data:`~experiments.probes.scores.VOID` for pixels of no class.

    Raises:
        ValueError: If the file cannot be read or has a value of no class (it changed since it was checked).
    """
    values = read_mask(path).astype(np.int64)
    ids = np.where(values == VOID, -1, values - 1) if void == VOID_ZERO else np.where(values == VOID, -1, values)
    if ids.max(initial=-1) >= num_classes or values.min(initial=0) < 0:
        raise ValueError(f'{path}: has value {values.max()}, which is none of the {num_classes} classes')
    return np.where(ids < 0, VOID, ids).astype(np.uint8)
