"""From label maps to training targets of patches, and which images and patches a probe is fitted to."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from addp_backbone.files.mask_areas import VOID

MIN_LABELLED = 0.5  # a patch counts if more of its area than this has a class


def class_shares(labels: NDArray[np.uint8], grid: tuple[int, int], num_classes: int) -> NDArray[np.float32]:
    """The share of each patch's area that each class covers; a patch may cut pixels, which then count in part.

    Args:
        labels: (H, W) class ids, :data:`VOID` where none is given.
        grid: (h, w) patches that the map is divided into.
        num_classes: Number of classes C.

    Returns:
        (h, w, C) in [0, 1]; the sum over C is the share that is labelled.
    """
    rows, columns = _overlap(labels.shape[0], grid[0]), _overlap(labels.shape[1], grid[1])
    shares = np.zeros((*grid, num_classes), np.float32)
    for index in np.unique(labels):
        if index != VOID:
            shares[..., index] = rows @ (labels == index).astype(np.float32) @ columns.T
    return shares


def _overlap(pixels: int, cells: int) -> NDArray[np.float32]:
    """(cells, pixels): how much of each cell each pixel covers; rows sum to 1."""
    edges = np.arange(cells + 1) * (pixels / cells)
    starts = np.arange(pixels)
    covered = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return (np.maximum(covered, 0) * (cells / pixels)).astype(np.float32)


def to_targets(shares: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets that sum to 1, and which patches have one.

    Args:
        shares: (..., C), as :func:`class_shares` gives them.

    Returns:
        (..., C) targets and (...) whether more than :data:`MIN_LABELLED` of the patch is labelled.
    """
    labelled = shares.sum(axis=-1)
    return shares / np.maximum(labelled, 1e-6)[..., None], labelled > MIN_LABELLED


def choose_images(num_images: int, fraction: float, seed: int) -> NDArray[np.int64]:
    """Indices of the training images of a label fraction; of one seed a smaller fraction lies in a larger one.

    Args:
        num_images: How many there are.
        fraction: In (0, 1]; at least one image is chosen, and a part of one counts as one.
        seed: Of the order in which images are taken.

    Returns:
        Ascending indices.

    Raises:
        ValueError: If the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f'a label fraction must lie in (0, 1], got {fraction}')
    count = max(1, math.ceil(round(fraction * num_images, 6)))
    return np.sort(np.random.default_rng(seed).permutation(num_images)[:count])


def choose_patches(num_patches: int, count: int, seed: int) -> NDArray[np.int64]:
    """Ascending indices of ``count`` patches drawn without replacement, or of all if there are no more."""
    if num_patches <= count:
        return np.arange(num_patches)
    return np.sort(np.random.default_rng([seed, 1]).permutation(num_patches)[:count])
