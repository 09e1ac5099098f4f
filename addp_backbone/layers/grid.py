"""The token grid: cutting it into windows, and looking up relative positions on it (pure functions)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def relative_positions(table: Tensor, size: int) -> Tensor:
    """Looks up the embedding of every (query, key) offset along one axis.

    Args:
        table: (2 * S - 1, D), the embeddings of the offsets -(S - 1) .. S - 1. Interpolated linearly if S is not
            ``size``, as detectron2's ViTDet does.
        size: Number of tokens along the axis.

    Returns:
        (size, size, D); entry [q, k] belongs to the offset q - k.
    """
    wanted = 2 * size - 1
    if table.shape[0] != wanted:
        dtype = table.dtype if table.dtype == torch.float64 else torch.float32
        table = F.interpolate(table.to(dtype).t()[None], size=wanted, mode='linear')[0].t().to(table.dtype)
    index = torch.arange(size, device=table.device)
    return table[index[:, None] - index[None, :] + size - 1]


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cuts a map into non-overlapping square windows.

    Args:
        x: (B, H, W, ...) with H and W multiples of ``window_size``.
        window_size: Side s of a window, in tokens.

    Returns:
        (B * H / s * W / s, s, s, ...), the windows of an image in raster order.
    """
    B, H, W, *rest = x.shape
    s = window_size
    return x.reshape(B, H // s, s, W // s, s, *rest).transpose(2, 3).reshape(-1, s, s, *rest)


def merge_windows(windows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Inverts :func:`partition_windows`.

    Args:
        windows: (B * H / s * W / s, s, s, ...).
        grid: (H, W) of the whole map.

    Returns:
        (B, H, W, ...).
    """
    H, W = grid
    s, rest = windows.shape[1], windows.shape[3:]
    return windows.reshape(-1, H // s, W // s, s, s, *rest).transpose(2, 3).reshape(-1, H, W, *rest)


def pad_to_windows(x: Tensor, window_size: int, fill: Tensor | None = None) -> Tensor:
    """Pads a map at the bottom and on the right to a whole number of windows.

    Args:
        x: (B, H, W, ...).
        window_size: Side of a window, in tokens.
        fill: What a padding token holds, of the shape of a token; zeros if None.

    Returns:
        (B, H', W', ...), H' and W' being the next multiples of ``window_size``; ``x`` itself if nothing is missing.
    """
    B, H, W, *rest = x.shape
    bottom, right = -H % window_size, -W % window_size
    token = x.new_zeros(()) if fill is None else fill.to(x.dtype)
    if right:
        x = torch.cat((x, token.expand(B, H, right, *rest)), dim=2)
    if bottom:
        x = torch.cat((x, token.expand(B, bottom, W + right, *rest)), dim=1)
    return x
