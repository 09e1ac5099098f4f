"""Scores of a segmentation: areas of each image, and mIoU and pixel accuracy of a whole data set from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

INTERSECTION, PREDICTED, LABELLED = range(3)


def upsampled_classes(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The best class of every pixel.

    Args:
        logits: (C, h, w), or probabilities.
        size: (H, W) of the labels.

    Returns:
        (H, W) int64: argmax of the logits after bilinear interpolation (corners not aligned, as mmseg does it).
    """
    upsampled = F.interpolate(logits[None].contiguous(), size, mode='bilinear', align_corners=False)[0]
    return upsampled.max(dim=0).indices  # argmax over a dimension that is not the last takes eight times as long


def class_iou(areas: NDArray[np.number]) -> NDArray[np.float64]:
    """IoU of every class, in per cent; NaN for a class that is neither labelled nor predicted.

    Args:
        areas: (..., 3, C), summed over images.

    Returns:
        (..., C).
    """
    intersection = areas[..., INTERSECTION, :].astype(np.float64)
    union = areas[..., PREDICTED, :] + areas[..., LABELLED, :] - intersection
    return 100 * np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_iou(areas: NDArray[np.number]) -> NDArray[np.float64]:
    """Mean IoU in per cent over the classes that occur in labels or predictions; ``areas`` as in :func:`class_iou`."""
    iou = class_iou(areas)
    occurs = ~np.isnan(iou)
    count = np.maximum(occurs.sum(axis=-1), 1)
    return np.where(occurs.any(axis=-1), np.nansum(iou, axis=-1) / count, np.nan)


def pixel_accuracy(areas: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per cent of the labelled pixels whose class is right (mmseg's aAcc); ``areas`` as for :func:`class_iou`."""
    right, all_pixels = areas[..., INTERSECTION, :].sum(axis=-1), areas[..., LABELLED, :].sum(axis=-1)
    return 100 * right / np.maximum(all_pixels, 1)
