"""Attention with decomposed relative positions on CUDA, forward and backward, by Triton kernels.

The logit of a query and a key is ``q . k / sqrt(D)`` plus a row term and a column term. The kernels add the terms to a
tile of logits in registers, so that the large matrix products are those of attention without positions: two in the
forward pass; in the backward pass five, of which two are computed twice, once for the gradients of queries and once for
those of keys and values. So every gradient is written by one program, without atomics, and does not change from run to
run. No N x N tensor is ever made, whatever the size of the grid, and the backward pass keeps q, k, v, the output and a
number a query.

Tiles were chosen among 280 on an H100 (docs/gpu.md). On other cards, :func:`addp_backbone.layers.attention.attend` puts
the kernels to a trial before their first use, as it does there.

Shapes: B images (or windows), (H, W) grid, N = H * W tokens, h heads, D head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = tl.constexpr(1.4426950408889634)  # the kernels compute powers of 2
_TABLE_PROGRAMS = 512  # that add up the gradients of a table, so that no processor of a card idles


class Tiles(NamedTuple):
    """How a kernel cuts the work.

    Attributes:
        queries: Queries of a tile.
        key_rows: Rows of the grid in a tile of keys.
        key_cols: Neighbours of each row in a tile of keys.
        head_width: The head width, filled up to a power of 2.
        num_warps: Warps of a program.
        num_stages: Steps whose tensors are loaded ahead.
    """

    queries: int
    key_rows: int
    key_cols: int
    head_width: int
    num_warps: int
    num_stages: int


def choose_tiles(grid: tuple[int, int], head_width: int, itemsize: int, part: str) -> Tiles:
    """Chooses tiles whose numbers stay in registers, as wide as little padding allows.

    Args:
        grid: (H, W) of the tokens.
        head_width: Channels of a head.
        itemsize: Bytes of an element.
        part: 'forward', or of the backward pass 'queries' or 'keys'.

    Returns:
        The tiles.
    """
    padded = max(16, triton.next_power_of_2(head_width))
    load = max(1, padded // 64) * max(1, itemsize // 2)  # registers of a number times columns, against 64 in 16 bits
    sizes = (64, 32, 16) if part != 'queries' and load == 1 else (32, 16)
    padded_cols = {size: -(-grid[1] // size) * size for size in sizes}
    key_cols = next(size for size in sizes if padded_cols[size] <= 1.15 * min(padded_cols.values()))
    key_rows = max(1, sizes[0] // key_cols) if part == 'keys' else 1
    queries = 64 // load
    num_stages = 3 if load <= 2 else 1  # more does not fit the shared memory
    if part == 'keys':  # several rows are gathered, which does not go ahead
        queries, num_stages = (64 // load, 1) if key_rows > 1 else (32, num_stages)
    queries = min(queries, max(16, triton.next_power_of_2(grid[0] * grid[1])))
    return Tiles(queries, key_rows, key_cols, padded, num_warps=4, num_stages=num_stages)


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
    return _attend(q, k, v, rows.to(q.dtype).contiguous(), cols.to(q.dtype).contiguous())[0]


@torch.library.custom_op('addp::relative_attention', mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, h, D) and, for the backward pass, the base-2 logarithm of the softmax's denominator (B, h, N)."""
    q, k, v = _join_channels(q, k, v)
    out, log_sums = _make_outputs(q)
    terms = _make_terms(q, rows, cols)
    _launch(_forward_kernel, 'forward', (q, k, v), (*terms, out, log_sums))
    return out, log_sums


@torch.library.custom_op('addp::relative_attention_backward', mutates_args=())
def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, out: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, rows and cols."""
    H, W = rows.shape[0], cols.shape[0]
    q, k, v = _join_channels(q, k, v)
    row_terms, col_terms = _make_terms(q, rows, cols)  # again: they would be as large as q, each
    grad = grad.contiguous()
    grad_q, grad_k, grad_v = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    num_col_tiles = triton.cdiv(W, choose_tiles((H, W), q.shape[-1], q.itemsize, 'queries').key_cols)
    grad_row_terms = row_terms.new_empty((num_col_tiles, *row_terms.shape))  # a part for each column of tiles
    grad_col_terms = torch.empty_like(col_terms)
    means = torch.empty_like(log_sums)
    of_queries = (row_terms, col_terms, grad, out, log_sums, means, grad_q, grad_row_terms, grad_col_terms)
    _launch(_query_gradients_kernel, 'queries', (q, k, v), of_queries)
    of_keys = (row_terms, col_terms, grad, log_sums, means, grad_k, grad_v)
    _launch(_key_gradients_kernel, 'keys', (q, k, v), of_keys)
    grad_row_terms = grad_row_terms[0] if num_col_tiles == 1 else grad_row_terms.sum(0)
    grad_tables = []
    for table, terms, axis in ((rows, grad_row_terms, 'rows'), (cols, grad_col_terms, 'columns')):
        _launch_terms(_term_query_gradients_kernel, (terms, table, grad_q), grad_q, table, axis)
        grad_tables.append(_table_gradients(terms, q, table, axis))
    return grad_q, grad_k, grad_v, grad_tables[0], grad_tables[1]


def _join_channels(*tensors: Tensor) -> list[Tensor]:
    """Copies those whose channels of a head are not neighbours, as all kernels take them to be."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _make_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    """Empty tensors for what :func:`_attend` returns."""
    B, N, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, torch.empty((B, heads, N), dtype=torch.float32, device=q.device)


def _make_terms(q: Tensor, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    """Row terms (B, h, H, N) and column terms (B, h, N, W)."""
    B, N, heads, _ = q.shape
    row_terms, col_terms = q.new_empty((B, heads, len(rows), N)), q.new_empty((B, heads, N, len(cols)))
    _launch_terms(_terms_kernel, (q, rows, row_terms), q, rows, 'rows')
    _launch_terms(_terms_kernel, (q, cols, col_terms), q, cols, 'columns')
    return row_terms, col_terms


def _table_gradients(grad_terms: Tensor, q: Tensor, table: Tensor, axis: str) -> Tensor:
    """The gradients of a table (lines, keys, D)."""
    num_pairs = q.shape[0] * q.shape[2]
    num_programs = len(table) * triton.cdiv(len(table), _term_tile(len(table)))
    pairs_each = max(1, min(num_pairs, num_pairs * num_programs // _TABLE_PROGRAMS))
    parts = torch.empty((triton.cdiv(num_pairs, pairs_each), *table.shape), dtype=torch.float32, device=q.device)
    tensors = (grad_terms, q, parts)
    _launch_terms(_term_table_gradients_kernel, tensors, q, table, axis, num_pairs, pairs_each)
    return parts.sum(0).to(table.dtype)


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
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


def _launch(kernel: Any, part: str, qkv: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> None:
    """Runs a kernel.

    Args:
        kernel: The kernel.
        part: Its part of the work, as in :func:`choose_tiles`.
        qkv: Queries, keys and values (B, N, h, D), with any strides, but 1 between the channels of a head.
        tensors: Its other tensors, contiguous; the first two are row_terms (B, h, H, N) and col_terms (B, h, N, W).
    """
    q, k, v = qkv
    B, N, heads, D = q.shape
    H, W = tensors[0].shape[2], tensors[1].shape[3]
    tiles = choose_tiles((H, W), D, q.itemsize, part)
    num_tiles = triton.cdiv(N, tiles.queries)
    sizes = dict(QUERIES=tiles.queries, KEY_COLS=tiles.key_cols, WIDTH=tiles.head_width)
    if part == 'keys':
        sizes.update(KEY_ROWS=tiles.key_rows)
        num_tiles = triton.cdiv(H, tiles.key_rows) * triton.cdiv(W, tiles.key_cols)
    with torch.cuda.device_of(q):
        kernel[(num_tiles * B * heads,)](
            *(q, k, v, *tensors),
            *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
            *(heads, H, W, D**-0.5),
            D=D,
            **sizes,
            PRECISION=_precision(q),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )


def _launch_terms(
    kernel: Any, tensors: tuple[Tensor, ...], queries: Tensor, table: Tensor, axis: str, *shares: int
) -> None:
    """Runs a kernel of the terms of one axis.

    Args:
        kernel: The kernel.
        tensors: Its tensors.
        queries: Queries or their gradients (B, N, h, D), with any strides, but 1 between the channels of a head.
        table: (lines, keys, D), as many lines as keys.
        axis: 'rows' or 'columns'.
        shares: For the gradients of tables: number of images and heads, and how many of them a program adds up.
    """
    B, N, heads, D = queries.shape
    size, num_run = len(table), N // len(table)
    stride_b, stride_n, stride_h = queries.stride()[:3]
    if axis == 'rows':  # H lines, W queries in each
        q_strides, strides = (num_run * stride_n, stride_n), (num_run, 1, N)
    else:
        q_strides, strides = (stride_n, size * stride_n), (size, size * size, 1)
    tile, run_tile = _term_tile(size), _term_tile(num_run)
    key_tiles, run_tiles = triton.cdiv(size, tile), triton.cdiv(num_run, run_tile)
    programs = size * B * heads * run_tiles
    if kernel is _terms_kernel:
        programs *= key_tiles
    elif kernel is _term_table_gradients_kernel:
        programs = size * key_tiles * triton.cdiv(*shares)
    with torch.cuda.device_of(queries):
        kernel[(programs,)](
            *tensors,
            *(stride_b, stride_h, *q_strides, *strides),
            *(heads, size, num_run, size, *shares),
            D=D,
            RUN=run_tile,
            KEYS=tile,
            WIDTH=max(16, triton.next_power_of_2(D)),
            PRECISION=_precision(queries),
            num_warps=4,
            num_stages=2,
        )


def _term_tile(size: int) -> int:
    """Width of a tile along an axis of the grid."""
    return min(64, max(16, triton.next_power_of_2(size)))


def _precision(x: Tensor) -> str:
    """How products of float32 are computed; 16 bits do not depend on it."""
    exact = x.dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision != 'tf32'
    return 'ieee' if exact else 'tf32'


# The kernels.
#
# Attention. A program owns a tile of queries of one head (or of keys, for their gradients). It goes through the keys by
# tiles of KEY_COLS neighbours in one row of the grid: an outer loop over the columns of tiles, in each of which the
# column terms stay in registers, and an inner loop over the rows, in each of which the row term is one number a query.
#
# Terms. The row terms of a query and all key rows are products with the table of its own row; column terms alike. The
# queries that share a table are a *line* (a row of the grid, or a column), along which they *run*.
#
# Tensors without strides are contiguous: row terms (B, h, H, N), column terms (B, h, N, W), tables (lines, keys, D),
# outputs (B, N, h, D), log_sums and means (B, h, N), and gradients alike, but that those of row terms have one more
# dimension in front, the columns of tiles, and those of tables one, the shares of images and heads.


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
def _query_gradients_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, row_ptr, col_ptr, grad_ptr, out_ptr, log_sum_ptr, mean_ptr, grad_q_ptr, grad_row_ptr,
    grad_col_ptr,
    q_stride_b, q_stride_n, q_stride_h, k_stride_b, k_stride_n, k_stride_h, v_stride_b, v_stride_n, v_stride_h,
    heads, H, W, scale,
    D: tl.constexpr, QUERIES: tl.constexpr, KEY_COLS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):
    # fmt: on
    """Gradients of a tile of queries and of their terms, and the means that the kernel below needs; loops as above."""
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
    row_ptr += pair * H * N
    grad_row_ptr += pair * H * N
    col_ptr += pair * N * W
    grad_col_ptr += pair * N * W
    log_sum_ptr += pair * N
    mean_ptr += pair * N
    channel = n[:, None] * heads * D + d[None, :]
    q = tl.load(q_ptr + n[:, None] * q_stride_n + d[None, :], mask=is_query_channel, other=0.0)
    grad = tl.load(grad_ptr + channel, mask=is_query_channel, other=0.0)
    out = tl.load(out_ptr + channel, mask=is_query_channel, other=0.0)
    mean = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)  # of the gradients of the weights, under the weights
    tl.store(mean_ptr + n, mean, mask=is_query)
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
            grad_logits = probs * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - mean[:, None])
            grad_q += tl.dot(grad_logits.to(q.dtype), k, input_precision=PRECISION)
            grad_row = tl.sum(grad_logits, 1).to(grad_row_ptr.dtype.element_ty)
            tl.store(grad_row_ptr + y * N + n, grad_row, mask=is_query)
            grad_cols += grad_logits
        grad_cols = grad_cols.to(grad_col_ptr.dtype.element_ty)
        tl.store(grad_col_ptr + n[:, None] * W + x[None, :], grad_cols, mask=is_term)
        grad_row_ptr += num_pairs * H * N
    tl.store(grad_q_ptr + channel, (grad_q * scale).to(grad_q_ptr.dtype.element_ty), mask=is_query_channel)


# fmt: off
@triton.jit
def _key_gradients_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, row_ptr, col_ptr, grad_ptr, log_sum_ptr, mean_ptr, grad_k_ptr, grad_v_ptr,
    q_stride_b, q_stride_n, q_stride_h, k_stride_b, k_stride_n, k_stride_h, v_stride_b, v_stride_n, v_stride_h,
    heads, H, W, scale,
    D: tl.constexpr, QUERIES: tl.constexpr, KEY_ROWS: tl.constexpr, KEY_COLS: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr
):
    # fmt: on
    """Gradients of a tile of keys, KEY_ROWS rows of KEY_COLS neighbours, and of their values: loops over queries."""
    N = H * W
    tiles_in_row = tl.cdiv(W, KEY_COLS)
    num_tiles = tl.cdiv(H, KEY_ROWS) * tiles_in_row
    pair = (tl.program_id(0) // num_tiles).to(tl.int64)
    b, head = pair // heads, pair % heads
    tile = tl.program_id(0) % num_tiles
    i = tl.arange(0, KEY_ROWS * KEY_COLS)
    y = tile // tiles_in_row * KEY_ROWS + i // KEY_COLS
    x = tile % tiles_in_row * KEY_COLS + i % KEY_COLS
    key = y * W + x
    d = tl.arange(0, WIDTH)
    is_key = (y < H) & (x < W)
    is_channel = (d < D)[None, :]
    is_key_channel = is_key[:, None] & is_channel
    start = (b * N * heads + head) * D  # of a head of an image in contiguous tensors
    q_ptr += b * q_stride_b + head * q_stride_h
    k_ptr += b * k_stride_b + head * k_stride_h
    v_ptr += b * v_stride_b + head * v_stride_h
    row_ptr += pair * H * N
    col_ptr += pair * N * W
    log_sum_ptr += pair * N
    mean_ptr += pair * N
    grad_ptr += start
    k = tl.load(k_ptr + key[:, None] * k_stride_n + d[None, :], mask=is_key_channel, other=0.0)
    v = tl.load(v_ptr + key[:, None] * v_stride_n + d[None, :], mask=is_key_channel, other=0.0)
    grad_k = tl.zeros([KEY_ROWS * KEY_COLS, WIDTH], tl.float32)
    grad_v = tl.zeros([KEY_ROWS * KEY_COLS, WIDTH], tl.float32)
    for first in range(0, N, QUERIES):
        n = first + tl.arange(0, QUERIES)
        is_query = n < N
        is_query_channel = is_query[:, None] & is_channel
        q = tl.load(q_ptr + n[:, None] * q_stride_n + d[None, :], mask=is_query_channel, other=0.0)
        grad = tl.load(grad_ptr + n[:, None] * heads * D + d[None, :], mask=is_query_channel, other=0.0)
        log_sums = tl.load(log_sum_ptr + n, mask=is_query, other=float('inf'))
        mean = tl.load(mean_ptr + n, mask=is_query, other=0.0)
        is_pair = is_key[:, None] & is_query[None, :]
        col_terms = tl.load(col_ptr + n[None, :] * W + x[:, None], mask=is_pair, other=0.0).to(tl.float32)
        if KEY_ROWS == 1:
            row = tile // tiles_in_row
            row_terms = tl.load(row_ptr + row * N + n, mask=is_query, other=0.0).to(tl.float32)[None, :]
        else:
            row_terms = tl.load(row_ptr + y[:, None] * N + n[None, :], mask=is_pair, other=0.0).to(tl.float32)
        logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * _LOG2_E)
        logits += (row_terms + col_terms) * _LOG2_E
        probs = tl.exp2(logits - log_sums[None, :])
        grad_v += tl.dot(probs.to(grad.dtype), grad, input_precision=PRECISION)
        grad_logits = probs * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - mean[None, :])
        grad_k += tl.dot(grad_logits.to(q.dtype), q, input_precision=PRECISION)
    channel = key[:, None] * heads * D + d[None, :]
    grad_k_ptr += start
    grad_v_ptr += start
    tl.store(grad_k_ptr + channel, (grad_k * scale).to(grad_k_ptr.dtype.element_ty), mask=is_key_channel)
    tl.store(grad_v_ptr + channel, grad_v.to(grad_v_ptr.dtype.element_ty), mask=is_key_channel)


# fmt: off
@triton.jit
def _terms_kernel(  # type: ignore[no-untyped-def]
    q_ptr, table_ptr, terms_ptr,
    q_stride_b, q_stride_h, q_stride_line, q_stride_run, stride_line, stride_run, stride_key,
    heads, num_lines, num_run, num_keys,
    D: tl.constexpr, RUN: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):
    # fmt: on
    """Terms of a tile of queries of one line with a tile of keys."""
    key_tiles, run_tiles = tl.cdiv(num_keys, KEYS), tl.cdiv(num_run, RUN)
    program = tl.program_id(0)
    key = program % key_tiles * KEYS + tl.arange(0, KEYS)
    run = program // key_tiles % run_tiles * RUN + tl.arange(0, RUN)
    line = program // (key_tiles * run_tiles) % num_lines
    pair = (program // (key_tiles * run_tiles * num_lines)).to(tl.int64)
    d = tl.arange(0, WIDTH)
    is_channel = (d < D)[None, :]
    is_run, is_key = (run < num_run)[:, None], key < num_keys
    q_ptr += pair // heads * q_stride_b + pair % heads * q_stride_h + line * q_stride_line
    table_ptr += line * num_keys * D
    terms_ptr += pair * num_lines * num_run * num_keys + line * stride_line
    q = tl.load(q_ptr + run[:, None] * q_stride_run + d[None, :], mask=is_run & is_channel, other=0.0)
    table = tl.load(table_ptr + key[:, None] * D + d[None, :], mask=is_key[:, None] & is_channel, other=0.0)
    terms = tl.dot(q, tl.trans(table), input_precision=PRECISION).to(terms_ptr.dtype.element_ty)
    place = run[:, None] * stride_run + key[None, :] * stride_key
    tl.store(terms_ptr + place, terms, mask=is_run & is_key[None, :])


# fmt: off
@triton.jit
def _term_query_gradients_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, table_ptr, grad_q_ptr,
    q_stride_b, q_stride_h, q_stride_line, q_stride_run, stride_line, stride_run, stride_key,
    heads, num_lines, num_run, num_keys,
    D: tl.constexpr, RUN: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):
    # fmt: on
    """Adds what the terms of a tile of queries of one line give to the gradients of these queries."""
    run_tiles = tl.cdiv(num_run, RUN)
    program = tl.program_id(0)
    run = program % run_tiles * RUN + tl.arange(0, RUN)
    line = program // run_tiles % num_lines
    pair = (program // (run_tiles * num_lines)).to(tl.int64)
    d = tl.arange(0, WIDTH)
    is_channel = (d < D)[None, :]
    is_run = (run < num_run)[:, None]
    grad_q_ptr += pair // heads * q_stride_b + pair % heads * q_stride_h + line * q_stride_line
    table_ptr += line * num_keys * D
    grad_ptr += pair * num_lines * num_run * num_keys + line * stride_line
    channel = run[:, None] * q_stride_run + d[None, :]
    grad_q = tl.load(grad_q_ptr + channel, mask=is_run & is_channel, other=0.0).to(tl.float32)
    for first in range(0, num_keys, KEYS):
        key = first + tl.arange(0, KEYS)
        is_key = key < num_keys
        place = run[:, None] * stride_run + key[None, :] * stride_key
        grad = tl.load(grad_ptr + place, mask=is_run & is_key[None, :], other=0.0)
        table = tl.load(table_ptr + key[:, None] * D + d[None, :], mask=is_key[:, None] & is_channel, other=0.0)
        grad_q += tl.dot(grad, table, input_precision=PRECISION)
    tl.store(grad_q_ptr + channel, grad_q.to(grad_q_ptr.dtype.element_ty), mask=is_run & is_channel)


# fmt: off
@triton.jit
def _term_table_gradients_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, q_ptr, grad_table_ptr,
    q_stride_b, q_stride_h, q_stride_line, q_stride_run, stride_line, stride_run, stride_key,
    heads, num_lines, num_run, num_keys, num_pairs, pairs_each,
    D: tl.constexpr, RUN: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):
    # fmt: on
    """Gradients of a line's table for a tile of keys, from a share of the images and heads."""
    key_tiles = tl.cdiv(num_keys, KEYS)
    program = tl.program_id(0)
    key = program % key_tiles * KEYS + tl.arange(0, KEYS)
    line = program // key_tiles % num_lines
    share = program // (key_tiles * num_lines)
    d = tl.arange(0, WIDTH)
    is_channel = (d < D)[None, :]
    is_key = (key < num_keys)[:, None]
    total = tl.zeros([KEYS, WIDTH], tl.float32)
    for index in range(share * pairs_each, tl.minimum((share + 1) * pairs_each, num_pairs)):
        pair = tl.cast(index, tl.int64)
        q_head_ptr = q_ptr + pair // heads * q_stride_b + pair % heads * q_stride_h + line * q_stride_line
        grad_head_ptr = grad_ptr + pair * num_lines * num_run * num_keys + line * stride_line
        for first in range(0, num_run, RUN):
            run = first + tl.arange(0, RUN)
            is_run = run < num_run
            channel = run[:, None] * q_stride_run + d[None, :]
            q = tl.load(q_head_ptr + channel, mask=is_run[:, None] & is_channel, other=0.0)
            place = key[:, None] * stride_key + run[None, :] * stride_run
            grad = tl.load(grad_head_ptr + place, mask=is_key & is_run[None, :], other=0.0)
            total += tl.dot(grad, q, input_precision=PRECISION)
    grad_table_ptr += (share * num_lines + line).to(tl.int64) * num_keys * D
    tl.store(grad_table_ptr + key[:, None] * D + d[None, :], total, mask=is_key & is_channel)
