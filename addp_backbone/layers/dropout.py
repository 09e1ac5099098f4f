"""Dropout whose mask is cheap to draw on a CPU, where torch's own draws a float for every element, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 2**16  # a draw decides between as many; probabilities are rounded to that


def dropout(x: Tensor, p: float) -> Tensor:
    """Zeroes each element with probability p and scales the others, so that the mean stays.

    On a CPU the mask is made of 16 random bits an element (from torch's global generator) and p is rounded to 1 /
    65536; elsewhere this is ``torch.nn.functional.dropout``.

    Args:
        x: Any float tensor.
        p: In [0, 1).

    Returns:
        A tensor of x's shape and precision; x itself for p = 0.
    """
    threshold = round(p * _STEPS)
    if threshold == 0:
        return x
    if x.device.type != 'cpu' or threshold == _STEPS:
        return F.dropout(x, p)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four draws in each
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - _STEPS // 2
    return (x * kept).mul_(_STEPS / (_STEPS - threshold))


class Dropout(nn.Dropout):
    """:func:`dropout` in train mode, nothing in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps a tensor to one of the same shape."""
        return dropout(x, self.p) if self.training else x
