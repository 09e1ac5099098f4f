"""Absolute and decomposed relative position embeddings of a token grid (pure functions)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_pos_embed(pos_embed: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Interpolates absolute position embeddings to another grid (bicubic, as ViTDet does).

    Args:
        pos_embed: (1, h * w, C), without an entry for cls.
        grid: (h, w) of ``pos_embed``.
        new_grid: (H, W) wanted.

    Returns:
        (1, H * W, C); the very same tensor if the grids agree.

    Raises:
        ValueError: If ``pos_embed`` does not have ``h * w`` entries.
    """
    h, w = grid
    if pos_embed.shape[1] != h * w:
        raise ValueError(f'position embeddings have {pos_embed.shape[1]} entries, but a {h} x {w} grid has {h * w}')
    if (h, w) == tuple(new_grid):
        return pos_embed
    maps = pos_embed.reshape(1, h, w, -1).permute(0, 3, 1, 2)
    dtype = maps.dtype if maps.dtype == torch.float64 else torch.float32
    maps = F.interpolate(maps.to(dtype), size=new_grid, mode='bicubic', align_corners=False).to(maps.dtype)
    return maps.permute(0, 2, 3, 1).reshape(1, new_grid[0] * new_grid[1], -1)


def relative_positions(table: Tensor, size: int) -> Tensor:
    """Looks up the embedding of every (query, key) offset along one axis.

    Args:
        table: (2 * S - 1, D): embeddings of the offsets -(S - 1) .. S - 1. Interpolated (linear) if S is not ``size``.
        size: Number of places along the axis.

    Returns:
        (size, size, D), entry [q, k] belonging to the offset q - k.
    """
    wanted = 2 * size - 1
    if table.shape[0] != wanted:
        dtype = table.dtype if table.dtype == torch.float64 else torch.float32
        table = F.interpolate(table.to(dtype).t()[None], size=wanted, mode='linear')[0].t().to(table.dtype)
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places[None, :] + size - 1]
