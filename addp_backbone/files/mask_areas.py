"""Pixels of every class in a predicted map and in its labels, image by image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VOID = 255  # in labels: a pixel of no class


def count_areas(predicted: Tensor, labels: Tensor | NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Pixels of every class in one image, without those that are void in the labels.

    Args:
        predicted: (H, W) class ids.
        labels: (H, W), :data:`VOID` where no class is given.
        num_classes: Number of classes.

    Returns:
        (3, num_classes): intersection, predicted area, labelled area. The columns of mmseg's ``IoUMetric``, whose sums
        over images give all its scores.
    """
    wanted = torch.as_tensor(labels, device=predicted.device).long()
    valid = wanted != VOID
    predicted, wanted = predicted[valid], wanted[valid]
    pairs = torch.bincount(wanted * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
    return torch.stack((pairs.diagonal(), pairs.sum(dim=0), pairs.sum(dim=1))).cpu().numpy()
