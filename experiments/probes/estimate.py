"""How long a probe takes, before anything is measured: a rough estimate for one CPU core, from the arithmetic.

The rates are those of one core of an AMD EPYC (2023); the clock of a running probe replaces them by what it measures.
"""

from __future__ import annotations

from experiments.probes.linear import BATCH_SIZE, POINTS
from experiments.probes.settings import KNN, LOGISTIC, ProbeSettings

FLOPS = 1e11  # of matrix products, a second
_LOGISTIC_EVALUATIONS = 330  # of loss and gradient until it converges, 4 products each
_KNN_SECONDS = 2e-8  # a pair of query and key: finding the nearest, beside the product
_LINEAR_SECONDS = 2e-8  # a point of the loss and class: upsampling, loss and gradient


def feature_seconds(images: int, patches: int, width: int, depth: int) -> float:
    """Computing the features of some images.

    Args:
        images: How many.
        patches: Of each image.
        width: Channels of a token.
        depth: Blocks that are computed.
    """
    return images * depth * patches * (24 * width**2 + 4 * patches * width) / FLOPS


def row_seconds(
    protocol: str, settings: ProbeSettings, channels: int, classes: int, train_patches: int, val_patches: int, grid: int
) -> float:
    """Fitting and scoring one row.

    Args:
        protocol: Which one.
        settings: Its numbers.
        channels: Of the tokens, all blocks of the row together.
        classes: Number of classes.
        train_patches: Of the chosen training images.
        val_patches: Of all validation images.
        grid: Patches of an image.
    """
    if protocol == LOGISTIC:
        n = min(settings.num_patches, train_patches)
        return 4 * _LOGISTIC_EVALUATIONS * n * channels * classes / (FLOPS / 6)  # narrow products are slower
    if protocol == KNN:
        pairs = val_patches * min(settings.memory_size, train_patches)
        return pairs * (2 * channels / FLOPS + _KNN_SECONDS)
    return settings.linear_iters * BATCH_SIZE * grid * POINTS**2 * classes * _LINEAR_SECONDS
