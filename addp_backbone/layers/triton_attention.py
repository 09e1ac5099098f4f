"""Attention with decomposed relative positions on CUDA, forward and backward, by Triton kernels.

The logit of a query and a key is ``q . k / sqrt(D)`` plus a row term and a column term. The kernels add the terms to a
tile of logits in registers, so that the large matrix products are those of attention without positions: two in the
forward pass, five in the backward pass. The terms, and the gradients of the tables, are small matrix products
outside. No N x N tensor is ever made, whatever the size of the grid.

In the backward pass the gradients of keys and values are sums over all programs, added up in float32 by atomics: their
order, hence the last bits, may differ from run to run.

**Never ran on a GPU.** The kernels were checked in Triton's interpreter on a CPU, values and gradients against float64,
and compiled for sm_80 and sm_90, where the tiles below fit the registers; nobody has measured how fast they are. Before
its first use on a device, :func:`addp_backbone.layers.attention.attend` puts them to a trial there.

Shapes: B images (or windows), (H, W) grid, N = H * W tokens, h heads, D head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUM_WARPS = 8
_LOG2_E = tl.constexpr(1.4426950408889634)  # the kernels compute powers of 2


class Tiles(NamedTuple):
    """How a kernel cuts the work.

    Attributes:
        queries: Queries of a program.
        key_cols: Keys of a step, neighbours in one row of the grid.
        head_width: The head width, filled up to a power of 2.
    """

    queries: int
    key_cols: int
    head_width: int


def choose_tiles(grid: tuple[int, int], head_width: int, itemsize: int, backward: bool) -> Tiles:
    """Chooses tiles whose numbers stay in registers, as wide as little padding allows.

    Args:
        grid: (H, W) of the tokens.
        head_width: Channels of a head.
        itemsize: Bytes of an element.
        backward: Whether the tiles are for the backward pass, which holds about twice as much.

    Returns:
        The tiles.
    """
    padded = max(16, triton.next_power_of_2(head_width))
    load = max(1, padded // 64) * max(1, itemsize // 2)  # registers of a number times columns, against 64 in 16 bits
    queries = (64 if backward else 128) // load
    sizes = (32, 16) if backward or load > 1 else (64, 32, 16)
    padded_cols = {size: -(-grid[1] // size) * size for size in sizes}
    key_cols = next(size for size in sizes if padded_cols[size] <= 1.15 * min(padded_cols.values()))
    queries = min(queries, max(16, triton.next_power_of_2(grid[0] * grid[1])))
    return Tiles(queries, key_cols, padded)


def relative_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Attends to all tokens of a grid, with relative positions.

    Args:
        q: (B, N, h, D), the queries; float32, float16 or bfloat16.
        k: (B, N, h, D), the keys, in the precision of q.
        v: (B, N, h, D), the values, in the precision of q.
        rows: (H, H, D), the embedding of the offset between query row and key row.
        cols: (W, W, D), the embedding of the offset between query column and key column.

    Returns:
        (B, N, h, D) in the precision of q.
    """
    B, N, heads, _ = q.shape
    H, W = rows.shape[0], cols.shape[0]
    q_map = q.unflatten(1, (H, W))
    rows, cols = rows.to(q.dtype), cols.to(q.dtype)
    row_terms = torch.einsum('byxhd,ykd->bhkyx', q_map, rows).reshape(B, heads, H, N)
    col_terms = torch.einsum('byxhd,xkd->bhyxk', q_map, cols).reshape(B, heads, N, W)
    return _attend(q, k, v, row_terms.contiguous(), col_terms.contiguous())[0]


@torch.library.custom_op('addp::relative_attention', mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, row_terms: Tensor, col_terms: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, h, D) and, for the backward pass, the base-2 logarithm of the softmax's denominator (B, h, N)."""
    out, log_sums = _make_outputs(q)
    tiles = _choose_tiles_for(q, col_terms, backward=False)
    _launch(_forward_kernel, tiles, (q, k, v), (row_terms, col_terms, out, log_sums), num_stages=2)
    return out, log_sums


@torch.library.custom_op('addp::relative_attention_backward', mutates_args=())
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_terms: Tensor,
    col_terms: Tensor,
    out: Tensor,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, row_terms and col_terms."""
    tiles = _choose_tiles_for(q, col_terms, backward=True)
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grad_k, grad_v = (torch.zeros(q.shape, dtype=torch.float32, device=q.device) for _ in range(2))
    num_col_tiles = -(-col_terms.shape[-1] // tiles.key_cols)
    grad_rows = row_terms.new_empty((num_col_tiles, *row_terms.shape))  # one for each column of tiles, to be added up
    grad_cols = torch.empty_like(col_terms)
    gradients = (grad_q, grad_k, grad_v, grad_rows, grad_cols)
    tensors = (row_terms, col_terms, grad.contiguous(), out, log_sums, *gradients)
    _launch(_backward_kernel, tiles, (q, k, v), tensors, num_stages=1)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_rows.sum(0), grad_cols


def _make_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    """Empty tensors for what :func:`_attend` returns."""
    B, N, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, torch.empty((B, heads, N), dtype=torch.float32, device=q.device)


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, row_terms: Tensor, col_terms: Tensor) -> tuple[Tensor, Tensor]:
    return _make_outputs(q)


@_attend_backward.register_fake
def _(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors[:5])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, grad_log_sums: Tensor | None) -> tuple[Tensor, ...]:
    return _attend_backward(grad, *ctx.saved_tensors)


_attend.register_autograd(_backward, setup_context=_keep)


def _choose_tiles_for(q: Tensor, col_terms: Tensor, backward: bool) -> Tiles:
    W = col_terms.shape[-1]
    return choose_tiles((q.shape[1] // W, W), q.shape[-1], q.itemsize, backward)


def _launch(kernel: Any, tiles: Tiles, qkv: tuple[Tensor, ...], tensors: tuple[Tensor, ...], num_stages: int) -> None:
    """Runs a kernel.

    Args:
        kernel: The kernel.
        tiles: How it cuts the work.
        qkv: Queries, keys and values (B, N, h, D), with any strides but between the channels of a head.
        tensors: Its other tensors, contiguous; the first two are row_terms (B, h, H, N) and col_terms (B, h, N, W).
        num_stages: Steps whose keys and values are loaded ahead.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in qkv)
    B, N, heads, D = q.shape
    H, W = tensors[0].shape[2], tensors[1].shape[3]
    exact = q.dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision != 'tf32'
    with torch.cuda.device_of(q):
        kernel[(triton.cdiv(N, tiles.queries) * B * heads,)](
            *(q, k, v, *tensors),
            *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
            *(heads, H, W, D**-0.5),
            D=D,
            QUERIES=tiles.queries,
            KEY_COLS=tiles.key_cols,
            WIDTH=tiles.head_width,
            PRECISION='ieee' if exact else 'tf32',
            num_warps=_NUM_WARPS,
            num_stages=num_stages,
        )


# The kernels. A program owns a tile of queries of one head. It goes through the keys by tiles of KEY_COLS neighbours in
# one row of the grid: an outer loop over the columns of tiles, in each of which the column terms stay in registers, and
# an inner loop over the rows, in each of which the row term is one number a query. Tensors without strides are
# contiguous: row terms (B, h, H, N), column terms (B, h, N, W), outputs (B, N, h, D), log_sums (B, h, N), and gradients
# alike, but that those of row terms have one more dimension in front, the columns of tiles.


# fmt: off
@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, row_ptr, col_ptr, out_ptr, log_sum_ptr,
    q_stride_b, q_stride_n, q_stride_h, k_stride_b, k_stride_n, k_stride_h, v_stride_b, v_stride_n, v_stride_h,
    heads, H, W, scale,
    D: tl.constexpr, QUERIES: tl.constexpr, KEY_COLS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):
    # fmt: on
    """A tile of queries of one head: loops over columns of tiles, then over the rows of the grid."""
    N = H * W
    num_tiles = tl.cdiv(N, QUERIES)
    pair = (tl.program_id(0) // num_tiles).to(tl.int64)  # image and head
    b, head = pair // heads, pair % heads
    n = tl.program_id(0) % num_tiles * QUERIES + tl.arange(0, QUERIES)
    d = tl.arange(0, WIDTH)
    is_query = n < N
    is_query_channel = is_query[:, None] & (d < D)[None, :]
    q_ptr += b * q_stride_b + head * q_stride_h
    k_ptr += b * k_stride_b + head * k_stride_h
    v_ptr += b * v_stride_b + head * v_stride_h
    row_ptr += pair * H * N
    col_ptr += pair * N * W
    out_ptr += (b * N * heads + head) * D
    q = tl.load(q_ptr + n[:, None] * q_stride_n + d[None, :], mask=is_query_channel, other=0.0)
    top = tl.full([QUERIES], float('-inf'), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, WIDTH], tl.float32)
    for left in range(0, W, KEY_COLS):
        x = left + tl.arange(0, KEY_COLS)
        is_key = x < W
        is_key_channel = is_key[:, None] & (d < D)[None, :]
        col_terms = tl.load(col_ptr + n[:, None] * W + x[None, :], mask=is_query[:, None] & is_key[None, :], other=0.0)
        col_terms = tl.where(is_key[None, :], col_terms.to(tl.float32) * _LOG2_E, float('-inf'))
        for y in range(0, H):
            key = y * W + x
            k = tl.load(k_ptr + key[:, None] * k_stride_n + d[None, :], mask=is_key_channel, other=0.0)
            row_terms = tl.load(row_ptr + y * N + n, mask=is_query, other=0.0).to(tl.float32) * _LOG2_E
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2_E)
            logits += row_terms[:, None] + col_terms
            new_top = tl.maximum(top, tl.max(logits, 1))
            probs = tl.exp2(logits - new_top[:, None])
            shrink = tl.exp2(top - new_top)
            total = total * shrink + tl.sum(probs, 1)
            v = tl.load(v_ptr + key[:, None] * v_stride_n + d[None, :], mask=is_key_channel, other=0.0)
            acc = acc * shrink[:, None] + tl.dot(probs.to(v.dtype), v, input_precision=PRECISION)
            top = new_top
    channel = n[:, None] * heads * D + d[None, :]
    tl.store(out_ptr + channel, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=is_query_channel)
    tl.store(log_sum_ptr + pair * N + n, top + tl.log2(total), mask=is_query)


# fmt: off
@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, row_ptr, col_ptr, grad_ptr, out_ptr, log_sum_ptr, grad_q_ptr, grad_k_ptr, grad_v_ptr,
    grad_row_ptr, grad_col_ptr,
    q_stride_b, q_stride_n, q_stride_h, k_stride_b, k_stride_n, k_stride_h, v_stride_b, v_stride_n, v_stride_h,
    heads, H, W, scale,
    D: tl.constexpr, QUERIES: tl.constexpr, KEY_COLS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):
    # fmt: on
    """As the forward kernel; owns the gradients of its queries and terms, and adds to those of keys and values."""
    N = H * W
    num_tiles = tl.cdiv(N, QUERIES)
    num_pairs = (tl.num_programs(0) // num_tiles).to(tl.int64)
    pair = (tl.program_id(0) // num_tiles).to(tl.int64)
    b, head = pair // heads, pair % heads
    n = tl.program_id(0) % num_tiles * QUERIES + tl.arange(0, QUERIES)
    d = tl.arange(0, WIDTH)
    is_query = n < N
    is_query_channel = is_query[:, None] & (d < D)[None, :]
    q_ptr += b * q_stride_b + head * q_stride_h
    k_ptr += b * k_stride_b + head * k_stride_h
    v_ptr += b * v_stride_b + head * v_stride_h
    start = (b * N * heads + head) * D  # of a head of an image in contiguous tensors
    grad_ptr += start
    out_ptr += start
    grad_q_ptr += start
    grad_k_ptr += start
    grad_v_ptr += start
    row_ptr += pair * H * N
    grad_row_ptr += pair * H * N
    col_ptr += pair * N * W
    grad_col_ptr += pair * N * W
    log_sum_ptr += pair * N
    channel = n[:, None] * heads * D + d[None, :]
    q = tl.load(q_ptr + n[:, None] * q_stride_n + d[None, :], mask=is_query_channel, other=0.0)
    grad = tl.load(grad_ptr + channel, mask=is_query_channel, other=0.0)
    out = tl.load(out_ptr + channel, mask=is_query_channel, other=0.0)
    mean = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)  # of the gradients of the weights, under the weights
    log_sums = tl.load(log_sum_ptr + n, mask=is_query, other=0.0)
    grad_q = tl.zeros([QUERIES, WIDTH], tl.float32)
    for left in range(0, W, KEY_COLS):
        x = left + tl.arange(0, KEY_COLS)
        is_key = x < W
        is_key_channel = is_key[:, None] & (d < D)[None, :]
        is_term = is_query[:, None] & is_key[None, :]
        col_terms = tl.load(col_ptr + n[:, None] * W + x[None, :], mask=is_term, other=0.0)
        col_terms = tl.where(is_key[None, :], col_terms.to(tl.float32) * _LOG2_E, float('-inf'))
        grad_cols = tl.zeros([QUERIES, KEY_COLS], tl.float32)
        for y in range(0, H):
            key = y * W + x
            k = tl.load(k_ptr + key[:, None] * k_stride_n + d[None, :], mask=is_key_channel, other=0.0)
            v = tl.load(v_ptr + key[:, None] * v_stride_n + d[None, :], mask=is_key_channel, other=0.0)
            row_terms = tl.load(row_ptr + y * N + n, mask=is_query, other=0.0).to(tl.float32) * _LOG2_E
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2_E)
            probs = tl.exp2(logits + row_terms[:, None] + col_terms - log_sums[:, None])
            key_channel = key[:, None] * heads * D + d[None, :]
            grad_v = tl.dot(tl.trans(probs.to(grad.dtype)), grad, input_precision=PRECISION)
            tl.atomic_add(grad_v_ptr + key_channel, grad_v, mask=is_key_channel, sem='relaxed')
            grad_logits = probs * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - mean[:, None])
            rounded = grad_logits.to(q.dtype)
            grad_q += tl.dot(rounded, k, input_precision=PRECISION)
            grad_k = tl.dot(tl.trans(rounded), q, input_precision=PRECISION) * scale
            tl.atomic_add(grad_k_ptr + key_channel, grad_k, mask=is_key_channel, sem='relaxed')
            grad_row = tl.sum(grad_logits, 1).to(grad_row_ptr.dtype.element_ty)
            tl.store(grad_row_ptr + y * N + n, grad_row, mask=is_query)
            grad_cols += grad_logits
        grad_cols = grad_cols.to(grad_col_ptr.dtype.element_ty)
        tl.store(grad_col_ptr + n[:, None] * W + x[None, :], grad_cols, mask=is_term)
        grad_row_ptr += num_pairs * H * N
    tl.store(grad_q_ptr + channel, (grad_q * scale).to(grad_q_ptr.dtype.element_ty), mask=is_query_channel)
