"""Attention by its definition, for comparison: every matrix is made, nothing is shared with the project's kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: tuple[int, int],
    window_size: int,
    padding: Tensor,
    rel_pos: tuple[Tensor, Tensor],
) -> Tensor:
    """Attention with decomposed relative positions (ViTDet, arXiv 2203.16527), window by window.

    Args:
        q: (B, N, h, D), the queries.
        k: (B, N, h, D), the keys.
        v: (B, N, h, D), the values.
        grid: (H, W) with H * W = N.
        window_size: Side of the windows in tokens; 0 for the whole grid.
        padding: (3, h, D), query, key and value of the tokens that complete windows.
        rel_pos: Tables (2 * S - 1, D) of row and column offsets, S the side of the window or of the grid.

    Returns:
        (B, N, h, D).
    """
    H, W = grid
    height, width = (window_size, window_size) if window_size else grid
    maps = [x.unflatten(1, grid) for x in (q, k, v)]  # (B, H, W, h, D)
    out = torch.zeros_like(maps[0])
    for top in range(0, H, height):
        for left in range(0, W, width):
            parts = []
            for x, fill in zip(maps, padding, strict=True):
                region = fill.expand(len(x), height, width, *fill.shape).clone()
                inside = x[:, top : top + height, left : left + width]
                region[:, : inside.shape[1], : inside.shape[2]] = inside
                parts.append(region.flatten(1, 2))
            result = _attend_within(parts, (height, width), rel_pos).unflatten(1, (height, width))
            rows, columns = min(height, H - top), min(width, W - left)
            out[:, top : top + rows, left : left + columns] = result[:, :rows, :columns]
    return out.flatten(1, 2)


def _attend_within(qkv: list[Tensor], grid: tuple[int, int], rel_pos: tuple[Tensor, Tensor]) -> Tensor:
    """(B, n, h, D) of all tokens of a region, each of which sees all."""
    q, k, v = qkv
    index = torch.arange(grid[0] * grid[1], device=q.device)
    logits = torch.einsum('bnhd,bmhd->bhnm', q, k) / q.shape[-1] ** 0.5
    for table, places, side in zip(rel_pos, (index // grid[1], index % grid[1]), grid, strict=True):
        offsets = places[:, None] - places[None, :] + side - 1  # (n, n)
        terms = torch.einsum('bnhd,sd->bhns', q, table)
        logits = logits + terms.gather(-1, offsets.expand(*terms.shape[:2], -1, -1))
    return torch.einsum('bhnm,bmhd->bnhd', logits.softmax(-1), v)
