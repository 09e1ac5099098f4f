"""The one face of attention: :func:`attend` decides which kernel computes it, by device, precision and task.

==========================  ==========================================================================================
CPU, relative positions     cache-sized blocks cut from the map (:mod:`addp_backbone.layers.cpu_attention`)
CPU, 16 bits                cache-sized blocks (same module)
CPU, dropout                explicit softmax: torch's fused attention would keep all weights in float32 there as well
CUDA, relative positions    16 bits or TF32: Triton kernel (:mod:`addp_backbone.layers.triton_attention`)
everything else             torch's fused attention; relative positions are extra columns of queries and keys
==========================  ==========================================================================================

Without Triton, where the Triton kernel fails its trial (:mod:`addp_backbone.layers.trial`), in exact float32 (where the
columns took 0.7 of the kernel's time on an H100) and with dropout, CUDA has the extra columns too: by cuDNN with values
128 wide if that passes a trial, otherwise by what torch chooses.

Shapes: B images, (H, W) grid, N = H * W tokens, h heads, D head width.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from enum import Enum

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from addp_backbone.layers.cpu_attention import block_attention, relative_attention
from addp_backbone.layers.dropout import dropout as drop
from addp_backbone.layers.grid import merge_windows, pad_to_windows, partition_windows, relative_positions
from addp_backbone.layers.trial import TOLERANCES, find_fault

_TRIAL_GRIDS = ((3, 13), (3, 29), (3, 61))  # one for each width of the Triton kernel's tiles
_CUDNN_VALUES = 128  # columns
_FLASH_LIMIT = 256  # columns


class Kernel(Enum):
    """Ways to compute attention; the value is what the log calls it."""

    RELATIVE_BLOCKS = 'cache-sized blocks of queries, relative positions added inside'
    BLOCKS = 'cache-sized blocks of queries'
    EXPLICIT = 'explicit softmax with dropout'
    TRITON = 'Triton kernel, relative positions added inside'
    CUDNN = "cuDNN's fused attention"
    FUSED = "torch's fused attention"


def choose_kernel(
    device: torch.device,
    dtype: torch.dtype,
    head_width: int,
    grid: tuple[int, int] | None,
    dropout: bool,
    biased: bool = False,
) -> Kernel:
    """Decides which kernel serves.

    Args:
        device: Where the queries are.
        dtype: Precision of the queries.
        head_width: Channels of a head.
        grid: (rows, columns) of the tokens that see each other if there are relative positions, else None.
        dropout: Whether attention weights are dropped in this pass.
        biased: Whether there is a bias for every pair of tokens.

    Returns:
        The kernel. ``RELATIVE_BLOCKS`` and ``TRITON`` add relative positions inside; the others need them as columns.
    """
    relative = grid is not None
    if device.type == 'cuda' and grid is not None and not dropout:
        if _serves(Kernel.TRITON, device, dtype, head_width):
            return Kernel.TRITON
        plain = torch.are_deterministic_algorithms_enabled() or torch.compiler.is_compiling()
        if not plain and _serves(Kernel.CUDNN, device, dtype, head_width, grid):
            return Kernel.CUDNN
    if device.type != 'cpu':
        return Kernel.FUSED
    if dropout:
        return Kernel.EXPLICIT
    if relative:
        return Kernel.RELATIVE_BLOCKS
    return Kernel.BLOCKS if dtype.itemsize == 2 and not biased else Kernel.FUSED


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: tuple[int, int] | None = None,
    window_size: int = 0,
    padding: Tensor | None = None,
    rel_pos: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
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
        bias: (h, N, N), added to the logits as it is; neither with windows nor with ``rel_pos``.
        dropout: Probability, in [0, 1), of dropping an attention weight.

    Returns:
        (B, N, h, D). With dropout on a CPU the N x N weights are made.

    Raises:
        ValueError: If the grid is needed and missing, or does not have N tokens, or ``bias`` stands beside windows or
            ``rel_pos``.
    """
    N, heads, D = q.shape[1:]
    if (window_size or rel_pos is not None) and grid is None:
        raise ValueError('windows and relative positions need the grid: pass grid=(rows, columns)')
    if grid is not None and grid[0] * grid[1] != N:
        raise ValueError(f'grid {grid} has {grid[0] * grid[1]} tokens, but there are {N} queries')
    if bias is not None and (window_size or rel_pos is not None):
        raise ValueError('a bias for every pair of tokens excludes windows and decomposed relative positions')
    region = None if rel_pos is None else (window_size, window_size) if window_size else grid
    kernel = choose_kernel(q.device, q.dtype, D, region, dropout > 0, bias is not None)
    if not torch.compiler.is_compiling():
        _log_once(kernel, q.device.type, q.dtype, rel_pos is not None)
    if grid is None or not (window_size or rel_pos is not None):
        return _attend_to_all(kernel, q, k, v, None, None, dropout, bias)
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
    bias: Tensor | None = None,
) -> Tensor:
    """(B, N, h, D) -> (B, N, h, D): every token attends to all N."""
    if kernel is Kernel.TRITON:
        from addp_backbone.layers import triton_attention  # imports Triton, which a machine without a GPU may lack

        assert grid is not None and rel_pos is not None
        rows, cols = (relative_positions(table, size) for table, size in zip(rel_pos, grid, strict=True))
        return triton_attention.relative_attention(q, k, v, rows, cols)
    D = q.shape[-1]
    scale = D**-0.5
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, h, N, D)
    if rel_pos is not None:
        assert grid is not None
        q, k = _append_relative_positions(q, k, grid, rel_pos, scale)
        v = F.pad(v, (0, _value_width(kernel, D, q.shape[-1]) - D))
        scale = 1.0
    if kernel is Kernel.EXPLICIT:
        logits = q * scale @ k.transpose(-2, -1)
        out = drop((logits if bias is None else logits + bias).softmax(-1), dropout) @ v
    elif kernel is Kernel.BLOCKS:
        out = block_attention(q, k, v, scale)
    elif kernel is Kernel.CUDNN:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    else:
        mask = None if bias is None else bias.to(q.dtype)[None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    return out[..., :D].transpose(1, 2)


def _append_relative_positions(
    q: Tensor, k: Tensor, grid: tuple[int, int], rel_pos: tuple[Tensor, Tensor], scale: float
) -> tuple[Tensor, Tensor]:
    """Turns relative positions into H + W more columns, so that attention without them, at scale 1, gives the same.

    A query's new columns are the terms of each key row and key column, a key's are one-hot and pick its own. They are
    filled up to a multiple of 8, as fused kernels want it.
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
    return q_all, k_all


def _value_width(kernel: Kernel, head_width: int, key_width: int) -> int:
    """How wide values are made where relative positions are extra columns of queries and keys.

    Flash kernels want values as wide as keys, of at most 256 columns; cuDNN and torch's memory-efficient kernel, which
    serves beyond that, take narrower ones.
    """
    if kernel is Kernel.CUDNN:
        return max(head_width, _CUDNN_VALUES)
    return key_width if key_width <= _FLASH_LIMIT else head_width + -head_width % 8


@torch.compiler.assume_constant_result
def _serves(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, head_width: int, grid: tuple[int, int] | None = None
) -> bool:
    """Whether a kernel can be had on a CUDA device, is right there, and is the quicker one.

    Under torch.compile the answer is a constant of the graph.
    """
    exact = dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision != 'tf32'
    if kernel is Kernel.TRITON and exact:
        return False
    return _passes_trial(kernel, device, dtype, head_width, grid)


@functools.cache
def _passes_trial(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, head_width: int, grid: tuple[int, int] | None
) -> bool:
    """Whether a kernel can be had on a CUDA device and is right there, by a trial on the first call.

    A fault is logged.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(device) < (8, 0) or dtype not in TOLERANCES:
        return False
    if kernel is Kernel.TRITON:
        if importlib.util.find_spec('triton') is None or torch.version.hip or not 16 <= head_width <= 128:
            return False
    else:
        width = head_width + sum(grid or ())
        if dtype is torch.float32 or not _CUDNN_VALUES < width + -width % 8 <= _FLASH_LIMIT:
            return False
    for trial_grid in _TRIAL_GRIDS if grid is None else (grid,):
        attend, reference = (functools.partial(_try, choice) for choice in (kernel, Kernel.FUSED))
        if fault := find_fault(attend, reference, trial_grid, head_width, device, dtype):
            message = f'attention on {device} in {str(dtype)[6:]} does without the {kernel.value}: {fault}'
            level = logging.WARNING if kernel is Kernel.TRITON else logging.DEBUG  # cuDNN's trials are one a grid
            print_log(message, logger='current', level=level)
            return False
    return True


def _try(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], rel_pos: tuple[Tensor, Tensor]
) -> Tensor:
    return _attend_to_all(kernel, q, k, v, grid, rel_pos, dropout=0.0)


@functools.cache
def _log_once(kernel: Kernel, device_type: str, dtype: torch.dtype, relative: bool) -> None:
    """Says in the log which kernel serves, once for each kind of input."""
    inside = kernel in (Kernel.RELATIVE_BLOCKS, Kernel.TRITON)
    columns = ', relative positions as extra columns' if relative and not inside else ''
    print_log(f'attention on {device_type} in {str(dtype)[6:]}: {kernel.value}{columns}', logger='current')
