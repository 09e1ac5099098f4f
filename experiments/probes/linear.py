"""The linear protocol of DINOv2: BatchNorm and one 1x1 convolution on a frozen map, trained by AdamW.

From DINOv2's published segmentation head (arXiv 2304.07193, section 7.4, and its ADE20K configs): BatchNorm, 1x1
convolution, no dropout, cross-entropy of the logits after bilinear upsampling to the labels, batches of 16 images,
AdamW with learning rate 1e-3, betas 0.9 and 0.999 and weight decay 1e-4, linear warm-up over the first 1500 of 40,000
iterations, then linear decay to 0.

Departures, all since features are computed once: whole images instead of random crops of 512 px, no augmentation;
:data:`ITERS` iterations with the same shape of schedule; and the loss is taken at :data:`POINTS` x :data:`POINTS`
points of each patch instead of at every pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone.files.mask_areas import VOID
from experiments.probes.logistic import LinearMap

ITERS, BATCH_SIZE = 500, 16
POINTS = 4
LEARNING_RATE, WEIGHT_DECAY, BETAS = 1e-3, 1e-4, (0.9, 0.999)
WARMUP_SHARE, WARMUP_FACTOR = 1500 / 40000, 1e-6
_INIT_STD = 0.01  # of mmseg's heads


def label_points(labels: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.uint8]:
    """Labels at the centres of :data:`POINTS` x :data:`POINTS` cells of each patch.

    Args:
        labels: (H, W).
        grid: (h, w) patches.

    Returns:
        (POINTS * h, POINTS * w).
    """
    rows, columns = (
        ((np.arange(POINTS * cells) + 0.5) * side / (POINTS * cells)).astype(np.int64)
        for cells, side in zip(grid, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]


def learning_rate_factor(iteration: int, iters: int) -> float:
    """What the learning rate is multiplied with in an iteration, from 0: linear warm-up, then linear decay to 0."""
    warmup = max(1, round(WARMUP_SHARE * iters))
    decay = 1 - iteration / iters
    if iteration >= warmup:
        return decay
    return decay * (1 - (1 - iteration / warmup) * (1 - WARMUP_FACTOR))


def fit_linear(
    tokens_of: Callable[[int], Tensor],
    labels: Sequence[NDArray[np.uint8]],
    num_classes: int,
    seed: int,
    iters: int = ITERS,
) -> LinearMap:
    """Trains BatchNorm and a 1x1 convolution.

    Args:
        tokens_of: Index of a training image -> its tokens, (h, w, channels) float.
        labels: Of every training image, as :func:`label_points` gives them.
        num_classes: Number of classes.
        seed: Of the initial weights and of the order of images, which are shuffled anew in every pass.
        iters: Number of iterations.

    Returns:
        The map from tokens to logits, with BatchNorm's running statistics folded in.
    """
    generator = torch.Generator().manual_seed(seed)
    first = tokens_of(0)
    norm = nn.BatchNorm1d(first.shape[-1]).to(first.device)
    weight = torch.empty(num_classes, first.shape[-1]).normal_(0, _INIT_STD, generator=generator).to(first.device)
    bias = torch.zeros(num_classes, device=first.device)
    params = [weight.requires_grad_(), bias.requires_grad_(), *norm.parameters()]
    optimizer = torch.optim.AdamW(params, LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY)
    order: list[int] = []
    for iteration in range(iters):
        while len(order) < min(BATCH_SIZE, len(labels)):
            order += torch.randperm(len(labels), generator=generator).tolist()
        batch, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        for group in optimizer.param_groups:
            group['lr'] = LEARNING_RATE * learning_rate_factor(iteration, iters)
        tokens = torch.stack([tokens_of(index) for index in batch])  # (B, h, w, channels)
        wanted = torch.from_numpy(np.stack([labels[index] for index in batch])).to(tokens.device).long()
        logits = F.linear(norm(tokens.flatten(0, 2)), weight, bias).unflatten(0, tokens.shape[:3]).permute(0, 3, 1, 2)
        logits = F.interpolate(logits, wanted.shape[1:], mode='bilinear', align_corners=False)
        loss = F.cross_entropy(logits, wanted, ignore_index=VOID)
        if (wanted != VOID).any():
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return _folded(norm, weight, bias)


@torch.no_grad()
def _folded(norm: nn.BatchNorm1d, weight: Tensor, bias: Tensor) -> LinearMap:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    scaled = weight * scale
    return LinearMap(scaled, bias + weight @ norm.bias - scaled @ norm.running_mean)
