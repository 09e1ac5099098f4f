"""Pooling and resizing as products with matrices: exact, and the same in every runtime.

An adaptive pooling or a bilinear resizing is linear and separable: along an axis it is a matrix. ONNX has no operator
for adaptive pooling to sizes that do not divide the input, and runtimes differ in antialiased resizing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MatrixPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` for square outputs.

    Args:
        size: Side of the output.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Pools (B, C, H, W) to (B, C, size, size)."""
        rows, cols = (pooling_matrix(length, self.size) for length in x.shape[-2:])
        return rows @ x @ cols.t()


def pooling_matrix(length: int, size: int) -> Tensor:
    """(size, length) float32: row i averages the inputs floor(i * length / size) to ceil((i + 1) * length / size)."""
    output, position = torch.arange(size)[:, None], torch.arange(length)[None]
    inside = (position >= output * length // size) & (position < ((output + 1) * length + size - 1) // size)
    weights = inside.float()
    return weights / weights.sum(dim=1, keepdim=True)


def resizing_matrix(length: int, size: int) -> Tensor:
    """(size, length) float32: bilinear resizing with antialiasing along an axis, as ``F.interpolate`` does it."""
    identity = torch.eye(length)[None, None]  # each column of the result is the answer to one input
    return F.interpolate(identity, (size, length), mode='bilinear', antialias=True)[0, 0]


def replace_pooling(module: nn.Module) -> None:
    """Replaces every ``nn.AdaptiveAvgPool2d`` in a module by :class:`MatrixPool`, in place.

    Raises:
        ValueError: If one has an output that is not square.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size: Any = child.output_size
            if not isinstance(size, int):
                if size[0] != size[1] or size[0] is None:
                    raise ValueError(f'cannot export adaptive pooling to {size}, only to squares')
                size = size[0]
            setattr(module, name, MatrixPool(int(size)))
        else:
            replace_pooling(child)
