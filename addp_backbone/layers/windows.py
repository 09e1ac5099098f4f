"""Cutting a token map into non-overlapping square windows and putting it together again (pure functions)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cuts a map into windows.

    Args:
        x: (B, H, W, C) with H and W multiples of ``window_size``.
        window_size: Side of a window, in places.

    Returns:
        (B * H / s * W / s, s, s, C), windows in raster order within an image.
    """
    B, H, W, C = x.shape
    s = window_size
    x = x.reshape(B, H // s, s, W // s, s, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, s, s, C)


def merge_windows(windows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Inverts :func:`partition_windows`.

    Args:
        windows: (B * H / s * W / s, s, s, C).
        grid: (H, W) of the whole map.

    Returns:
        (B, H, W, C).
    """
    H, W = grid
    s, C = windows.shape[1], windows.shape[-1]
    x = windows.reshape(-1, H // s, W // s, s, s, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, C)


def pad_to_windows(x: Tensor, window_size: int) -> Tensor:
    """Pads a map with zeros at the bottom and right to whole windows.

    Args:
        x: (B, H, W, C).
        window_size: Side of a window, in places.

    Returns:
        (B, H', W', C), H' and W' the next multiples of ``window_size``.
    """
    H, W = x.shape[1:3]
    bottom, right = -H % window_size, -W % window_size
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x
