"""Dropout whose mask is cheap to draw on a CPU, where torch's own draws one float after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NUM_LEVELS = 2**16  # values of the 16 random bits an element gets; probabilities are rounded to 1 / 65536


def dropout(x: Tensor, p: float) -> Tensor:
    """Zeroes each element with probability p and scales the others, so that the mean stays.

    On a CPU the mask is drawn from torch's global generator, 16 random bits an element, and p is rounded to a multiple
    of 1 / 65536; elsewhere and under torch.compile, which would break its graph here, this is
    ``torch.nn.functional.dropout``.

    Args:
        x: Any float tensor.
        p: Probability in [0, 1).

    Returns:
        A tensor of x's shape and precision; x itself for p = 0.
    """
    threshold = round(p * _NUM_LEVELS)
    if threshold == 0:
        return x
    if x.device.type != 'cpu' or threshold == _NUM_LEVELS or torch.compiler.is_compiling():
        return F.dropout(x, p)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # each word serves four elements
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - _NUM_LEVELS // 2
    return (x * kept).mul_(_NUM_LEVELS / (_NUM_LEVELS - threshold))


class Dropout(nn.Dropout):
    """:func:`dropout` in train mode, the identity in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps a tensor to one of the same shape."""
        return dropout(x, self.p) if self.training else x
