"""The one face of attention: :func:`attend` decides which kernel computes it, by device, precision and task.

==========================  ==========================================================================================
CPU, relative positions     cache-sized blocks cut from the map (:mod:`addp_backbone.layers.cpu_attention`)
CPU, 16 bits                cache-sized blocks (same module)
CPU, dropout                explicit softmax: torch's fused attention would keep all weights in float32 there as well
everything else             torch's fused attention; relative positions are extra columns of queries and keys
==========================  ==========================================================================================

Shapes: B images, (H, W) grid, N = H * W tokens, h heads, D head width.
"""

from __future__ import annotations

import functools
from enum import Enum

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.nn import functional as F

from addp_backbone.layers.cpu_attention import block_attention, relative_attention
from addp_backbone.layers.dropout import dropout as drop
from addp_backbone.layers.grid import merge_windows, pad_to_windows, partition_windows, relative_positions


class Kernel(Enum):
    """Ways to compute attention; the value is what the log calls it."""

    RELATIVE_BLOCKS = 'cache-sized blocks of queries, relative positions added inside'
    BLOCKS = 'cache-sized blocks of queries'
    EXPLICIT = 'explicit softmax with dropout'
    FUSED = "torch's fused attention"


def choose_kernel(device_type: str, dtype: torch.dtype, relative: bool, dropout: bool) -> Kernel:
    """Decides which kernel serves.

    Args:
        device_type: 'cpu', 'cuda', ...
        dtype: Precision of the queries.
        relative: Whether there are relative positions.
        dropout: Whether attention weights are dropped in this pass.

    Returns:
        The kernel. Only ``RELATIVE_BLOCKS`` has relative positions of its own; for the others they become columns.
    """
    if device_type != 'cpu':
        return Kernel.FUSED
    if dropout:
        return Kernel.EXPLICIT
    if relative:
        return Kernel.RELATIVE_BLOCKS
    return Kernel.BLOCKS if dtype.itemsize == 2 else Kernel.FUSED


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: tuple[int, int] | None = None,
    window_size: int = 0,
    padding: Tensor | None = None,
    rel_pos: tuple[Tensor, Tensor] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head attention, ``softmax(q k^T / sqrt(D) + relative positions) v``, without an N x N tensor.

    Args:
        q: (B, N, h, D), the queries.
        k: (B, N, h, D), the keys.
        v: (B, N, h, D), the values.
        grid: (H, W) with H * W = N; needed for windows and relative positions.
        window_size: Side of the windows attended within, in tokens; 0 for the whole map.
        padding: (3, h, D), query, key and value of the padding tokens that complete windows at the bottom and on the
            right; zeros if None.
        rel_pos: Tables (2 * S - 1, D) of row and column offsets: ``q . R_h[row offset] + q . R_w[column offset]`` is
            added to each logit (ViTDet, arXiv 2203.16527; MViTv2, arXiv 2112.01526). Interpolated to the size needed.
        dropout: Probability, in [0, 1), of dropping an attention weight.

    Returns:
        (B, N, h, D). With dropout on a CPU the N x N weights are made.

    Raises:
        ValueError: If the grid is needed and missing, or does not have N tokens.
    """
    N, heads, D = q.shape[1:]
    if (window_size or rel_pos is not None) and grid is None:
        raise ValueError('windows and relative positions need the grid: pass grid=(rows, columns)')
    if grid is not None and grid[0] * grid[1] != N:
        raise ValueError(f'grid {grid} has {grid[0] * grid[1]} tokens, but there are {N} queries')
    kernel = choose_kernel(q.device.type, q.dtype, rel_pos is not None, dropout > 0)
    if not torch.compiler.is_compiling():
        _log_once(kernel, q.device.type, q.dtype, rel_pos is not None)
    if grid is None or not (window_size or rel_pos is not None):
        return _attend_to_all(kernel, q, k, v, None, None, dropout)
    if padding is None:
        padding = q.new_zeros(3, heads, D)
    if kernel is Kernel.RELATIVE_BLOCKS:
        assert rel_pos is not None
        q_map, k_map, v_map = (x.unflatten(1, grid) for x in (q, k, v))  # (B, H, W, h, D)
        rows, cols = (relative_positions(x, window_size or size) for x, size in zip(rel_pos, grid, strict=True))
        return relative_attention(q_map, k_map, v_map, padding, rows, cols, window_size).flatten(1, 2)
    if not window_size:
        return _attend_to_all(kernel, q, k, v, grid, rel_pos, dropout)
    s = window_size
    q, k, v = (_cut_windows(x.unflatten(1, grid), s, fill) for x, fill in zip((q, k, v), padding, strict=True))
    out = _attend_to_all(kernel, q, k, v, (s, s), rel_pos, dropout)  # (B * windows, s * s, h, D)
    padded_grid = grid[0] + -grid[0] % s, grid[1] + -grid[1] % s
    out = merge_windows(out.unflatten(1, (s, s)), padded_grid)
    return out[:, : grid[0], : grid[1]].flatten(1, 2)


def _cut_windows(x: Tensor, window_size: int, fill: Tensor) -> Tensor:
    """(B, H, W, h, D) -> (B * windows, s * s, h, D), completed by padding tokens."""
    return partition_windows(pad_to_windows(x, window_size, fill), window_size).flatten(1, 2)


def _attend_to_all(
    kernel: Kernel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: tuple[int, int] | None,
    rel_pos: tuple[Tensor, Tensor] | None,
    dropout: float,
) -> Tensor:
    """(B, N, h, D) -> (B, N, h, D): every token attends to all N."""
    D = q.shape[-1]
    scale = D**-0.5
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, h, N, D)
    if rel_pos is not None:
        assert grid is not None
        q, k, v = _append_relative_positions(q, k, v, grid, rel_pos, scale)
        scale = 1.0
    if kernel is Kernel.EXPLICIT:
        out = drop((q * scale @ k.transpose(-2, -1)).softmax(-1), dropout) @ v
    elif kernel is Kernel.BLOCKS:
        out = block_attention(q, k, v, scale)
    else:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    return out[..., :D].transpose(1, 2)


def _append_relative_positions(
    q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], rel_pos: tuple[Tensor, Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Turns relative positions into H + W more columns, so that attention without them, at scale 1, gives the same.

    A query's new columns are the terms of each key row and key column, a key's are one-hot and pick its own. They are
    filled up to a multiple of 8, and the values to the width of the keys, as fused kernels want it.
    """
    B, heads, N, D = q.shape
    H, W = grid
    rows_HHD, cols_WWD = (
        relative_positions(table, size).to(q.dtype) for table, size in zip(rel_pos, grid, strict=True)
    )
    q_map = q.reshape(B, heads, H, W, D)
    row_terms = torch.einsum('bnhwd,hkd->bnhwk', q_map, rows_HHD).reshape(B, heads, N, H)
    col_terms = torch.einsum('bnhwd,wkd->bnhwk', q_map, cols_WWD).reshape(B, heads, N, W)
    index = torch.arange(N, device=q.device)
    row_pick = F.one_hot(index // W, H)  # (N, H)
    col_pick = F.one_hot(index % W, W)  # (N, W)
    pick = torch.cat((row_pick, col_pick), dim=-1).to(q.dtype).expand(B, heads, N, H + W)
    fill = -(D + H + W) % 8
    q_all = F.pad(torch.cat((q * scale, row_terms, col_terms), dim=-1), (0, fill))
    k_all = F.pad(torch.cat((k, pick), dim=-1), (0, fill))
    return q_all, k_all, F.pad(v, (0, H + W + fill))


@functools.cache
def _log_once(kernel: Kernel, device_type: str, dtype: torch.dtype, relative: bool) -> None:
    """Says in the log which kernel serves, once for each kind of input."""
    columns = ', relative positions as extra columns' if relative and kernel is not Kernel.RELATIVE_BLOCKS else ''
    print_log(f'attention on {device_type} in {str(dtype)[6:]}: {kernel.value}{columns}', logger='current')
