"""Losses of ADDP and of the token predictor: cross entropy with label smoothing over masked tokens (pure functions).

Always computed in float32, also under autocast. Shapes: B images, L tokens, V vocabulary, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LABEL_SMOOTHING = 0.1


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values (B, L) over the tokens where mask (B, L, bool) is True.

    Raises:
        ValueError: If the shapes differ.
    """
    if values.shape != mask.shape:
        raise ValueError(f'the mask must have the shape of the values, {tuple(values.shape)}, got {tuple(mask.shape)}')
    # Selecting, not multiplying by 0, so that an infinity at an unmasked token cannot make the mean NaN.
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp(min=1)


def masked_soft_cross_entropy(
    logits: Tensor, target: Tensor, mask: Tensor, label_smoothing: float = LABEL_SMOOTHING
) -> Tensor:
    """Cross entropy against a soft target over the first K entries of the vocabulary (ADDP's loss).

    The target is zero beyond K, then smoothed over the *whole* vocabulary: (1 - s) * target + s / V.

    Args:
        logits: (B, L, V).
        target: (B, L, K) with K <= V, rows summing to 1.
        mask: (B, L) bool; only True tokens count.
        label_smoothing: s in [0, 1).

    Returns:
        A scalar, float32.

    Raises:
        ValueError: If the shapes do not fit.
    """
    K = target.shape[-1]
    if logits.shape[:2] != target.shape[:2] or logits.shape[-1] < K:
        raise ValueError(
            f'logits (B, L, V) and target (B, L, K <= V) do not fit: got {tuple(logits.shape)} and '
            f'{tuple(target.shape)}'
        )
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = F.log_softmax(logits.float(), dim=-1)
        hit = (target.float() * log_probs[..., :K]).sum(-1)
        smooth = log_probs.mean(-1)
        return masked_mean(-(1 - label_smoothing) * hit - label_smoothing * smooth, mask)


def masked_cross_entropy(
    logits: Tensor, tokens: Tensor, mask: Tensor, label_smoothing: float = LABEL_SMOOTHING
) -> Tensor:
    """Cross entropy against the true tokens (the token predictor's loss).

    Args:
        logits: (B, L, K).
        tokens: (B, L) int64 in [0, K).
        mask: (B, L) bool; only True tokens count.
        label_smoothing: In [0, 1).

    Returns:
        A scalar, float32.
    """
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.cross_entropy(
            logits.float().transpose(1, 2), tokens, reduction='none', label_smoothing=label_smoothing
        )
        return masked_mean(losses, mask)
