"""Windows around any block: which tokens see each other, without padding.

The map is cut from its upper left corner into windows of s x s tokens; the last ones of a row or column are smaller
where the grid is no multiple of s. (ViTDet pads the map with zeros instead, which a block's tokens then see as keys;
pre-trained blocks have never seen such tokens.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """Windows of one size: a rectangle of the map, cut into them.

    Attributes:
        top: First row of the rectangle.
        left: First column.
        num_rows: Windows one below the other.
        num_cols: Windows side by side.
        height: Rows of a window.
        width: Columns of a window.
        grid: (H, W) of the whole map.
    """

    top: int
    left: int
    num_rows: int
    num_cols: int
    height: int
    width: int
    grid: tuple[int, int]

    @property
    def num_windows(self) -> int:
        """Windows of the region."""
        return self.num_rows * self.num_cols

    @property
    def area(self) -> tuple[slice, slice]:
        """Rows and columns of the map that the region covers."""
        return (
            slice(self.top, self.top + self.num_rows * self.height),
            slice(self.left, self.left + self.num_cols * self.width),
        )

    def cut(self, maps: Tensor) -> Tensor:
        """(..., H, W, C) -> (..., num_windows, height * width, C)."""
        rows, cols = self.area
        return rearrange(
            maps[..., rows, cols, :],
            '... (rows h) (cols w) c -> ... (rows cols) (h w) c',
            rows=self.num_rows,
            cols=self.num_cols,
        )

    def paste(self, windows: Tensor, maps: Tensor) -> None:
        """Writes (B, num_windows, height * width, C) into its area of ``maps`` (B, H, W, C)."""
        rows, cols = self.area
        maps[:, rows, cols] = rearrange(
            windows,
            'b (rows cols) (h w) c -> b (rows h) (cols w) c',
            rows=self.num_rows,
            h=self.height,
            w=self.width,
        )


def whole_map(grid: tuple[int, int]) -> Region:
    """The one window that is the whole map."""
    return Region(0, 0, 1, 1, *grid, grid)


def regions(grid: tuple[int, int], window_size: int) -> Iterator[Region]:
    """Yields at most four regions that together cover the map.

    Args:
        grid: (H, W), in tokens.
        window_size: Side of a window, in tokens; 0 = the whole map is one window.
    """
    if window_size == 0:
        yield whole_map(grid)
        return
    for top, num_rows, height in _spans(grid[0], window_size):
        for left, num_cols, width in _spans(grid[1], window_size):
            yield Region(top, left, num_rows, num_cols, height, width, grid)


def _spans(length: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(start, number, length) of the windows along an axis: the full ones, then the rest."""
    full, rest = divmod(length, size)
    if full:
        yield 0, full, size
    if rest:
        yield full * size, 1, rest


def relative_index(region: Region, device: torch.device) -> Tensor:
    """Index into a table of (2H - 1) * (2W - 1) offsets, for each pair of a window's tokens.

    Returns:
        (height * width, height * width) int64: row = query, column = key, both in raster order.
    """
    H, W = region.grid
    rows = torch.arange(region.height, device=device).repeat_interleave(region.width)
    cols = torch.arange(region.width, device=device).repeat(region.height)
    row_offset = rows[:, None] - rows[None] + H - 1
    col_offset = cols[:, None] - cols[None] + W - 1
    return row_offset * (2 * W - 1) + col_offset
