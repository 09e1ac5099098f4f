"""Attention with decomposed relative positions on a CPU, in blocks of queries, forward and backward.

The logit of query and key is ``q . k / sqrt(D) + q . R_h[row offset] + q . R_w[column offset]`` (ViTDet, MViTv2). A
block of it is small enough for the processor's cache, and the backward pass computes it again, so that neither pass
ever holds an N x N tensor and nothing but the queries, keys, values and the output is kept in between. Windows are cut
from the map one at a time, so neither a padded nor a partitioned copy of the map is made, and padding asks nothing: it
is only seen.

Shapes: B images, (H, W) grid, N = H * W, h heads, D head width; of a region (a window or the whole map): Q queries, K
keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Bytes of a block of logits. The forward pass holds one, the backward pass a few, which have to stay in the cache;
# matrix products in two bytes are so quick that a block must be larger to be worth its calls.
_FORWARD_BLOCK = 2**23
_BACKWARD_BLOCK = {2: 2**21, 4: 2**20, 8: 2**20}  # by the bytes of a number


class _Region(NamedTuple):
    """Queries that see the same keys: a window, the part of it that is no padding, or the whole map."""

    place: tuple[int, slice, slice]  # image, rows and columns of the queries
    key_grid: tuple[int, int]  # rows and columns of the keys, padding included


def relative_attention(qkv: Tensor, padding: Tensor, row_table: Tensor, col_table: Tensor, window_size: int) -> Tensor:
    """Attends within windows or the whole map.

    Args:
        qkv: (B, H, W, 3, h, D), queries, keys and values.
        padding: (3, h, D), those of a place of padding, which completes the windows at the bottom and on the right.
        row_table: (S, S, D), for query row and key row within a region the embedding of their offset; S is the window's
            size, or H.
        col_table: (S, S, D), the same for columns; S is the window's size, or W.
        window_size: Side of the windows, in places; 0 for the whole map.

    Returns:
        (B, H, W, h, D) in the precision of ``qkv``.
    """
    return _RelativeAttention.apply(
        qkv, padding.to(qkv.dtype), row_table.to(qkv.dtype), col_table.to(qkv.dtype), window_size
    )


class _RelativeAttention(torch.autograd.Function):
    """See :func:`relative_attention`; all tensors have one precision."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, padding: Tensor, row_table: Tensor, col_table: Tensor, window_size: int
    ) -> Tensor:
        out = torch.empty_like(qkv[:, :, :, 0])
        with torch.autocast('cpu', enabled=False):
            for region in _regions(qkv, window_size):
                q, k, v = _cut(qkv, padding, region)
                row_terms, col_terms = _terms(q, row_table, col_table)
                target = out[region.place].permute(2, 0, 1, 3)  # (h, rows, cols, D)
                heads, num_rows, num_cols, _ = q.shape
                row_bytes = q.itemsize * num_cols * k.shape[1]  # of a row of queries, for one head
                for head in blocks(heads, _FORWARD_BLOCK // (row_bytes * num_rows)):
                    for rows in blocks(num_rows, _FORWARD_BLOCK // (row_bytes * (head.stop - head.start))):
                        place = head, rows
                        bias = (
                            row_terms[place][..., None] + col_terms[place][..., None, :]
                        )  # (heads, rows, cols, key rows, key cols)
                        block = F.scaled_dot_product_attention(
                            q[place].flatten(1, 2)[None],
                            k[head][None],
                            v[head][None],
                            attn_mask=bias.flatten(3).flatten(1, 2)[None],
                        )
                        target[place] = block[0].unflatten(1, (-1, num_cols))
        ctx.save_for_backward(qkv, padding, row_table, col_table, out)
        ctx.window_size = window_size
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, padding, row_table, col_table, out = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv)
        grad_padding, grad_row_table, grad_col_table = map(torch.zeros_like, (padding, row_table, col_table))
        with torch.autocast('cpu', enabled=False):
            for region in _regions(qkv, ctx.window_size):
                q, k, v = _cut(qkv, padding, region)
                _, num_rows, num_cols, _ = q.shape
                grad, result = (x[region.place].permute(2, 0, 1, 3).flatten(1, 2).contiguous() for x in (grad_out, out))
                mean = (grad * result).sum(-1, keepdim=True)  # (h, Q, 1)
                terms = _terms(q, row_table, col_table)
                gq, gk, gv = _region_backward(q, k, v, terms, grad, mean)
                row_terms, col_terms = terms  # by now their gradients
                rows, cols = row_table[:num_rows], col_table[:num_cols]
                gq += torch.einsum('hrck,rkd->hrcd', row_terms, rows) + torch.einsum('hrck,ckd->hrcd', col_terms, cols)
                grad_row_table[:num_rows] += torch.einsum('hrck,hrcd->rkd', row_terms, q)
                grad_col_table[:num_cols] += torch.einsum('hrck,hrcd->ckd', col_terms, q)
                grad_qkv[region.place] = _merge(gq, gk, gv, region, grad_padding)
        return grad_qkv, grad_padding, grad_row_table, grad_col_table, None


def _region_backward(
    q: Tensor, k: Tensor, v: Tensor, terms: tuple[Tensor, Tensor], grad: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a region's queries (without the terms' share), keys and values; *overwrites* the terms with theirs.

    Args:
        q: (h, rows, cols, D).
        k: (h, K, D).
        v: (h, K, D).
        terms: (h, rows, cols, key rows) and (h, rows, cols, key cols).
        grad: (h, Q, D), the output's gradient.
        mean: (h, Q, 1), its product with the output: the mean, under the attention, of its products with the values.
    """
    heads, num_rows, num_cols, D = q.shape
    scaled = q.flatten(1, 2) * D**-0.5
    kt, vt = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()
    row_terms, col_terms = (term.flatten(1, 2) for term in terms)
    gq = torch.empty_like(scaled)
    gk, gv = (
        torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v)
    )  # sums of many blocks
    block = _BACKWARD_BLOCK[q.itemsize] // q.itemsize // k.shape[1]  # pairs of head and query
    for queries in blocks(num_rows * num_cols, block):
        for head in blocks(heads, block // (queries.stop - queries.start)):
            place = head, queries
            logits = torch.bmm(scaled[place], kt[head])  # (heads, queries, K)
            grid = logits.unflatten(2, (row_terms.shape[-1], col_terms.shape[-1]))
            grid.add_(row_terms[place][..., None]).add_(col_terms[place][..., None, :])
            probs = logits.softmax(-1)
            _add_product(gv[head], probs.transpose(1, 2), grad[place])
            torch.bmm(grad[place], vt[head], out=logits)
            logits.sub_(mean[place]).mul_(probs)  # the gradient of the logits
            _add_product(gk[head], logits.transpose(1, 2), scaled[place])
            gq[place] = torch.bmm(logits, k[head])
            row_terms[place] = grid.sum(-1)
            col_terms[place] = grid.sum(-2)
    return (gq * D**-0.5).view_as(q), gk.to(k.dtype), gv.to(v.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a batch of matrix products, in the precision of the total."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)


def _regions(qkv: Tensor, window_size: int) -> Iterator[_Region]:
    B, H, W = qkv.shape[:3]
    height, width = (window_size, window_size) if window_size else (H, W)
    for image in range(B):
        for top in range(0, H, height):
            for left in range(0, W, width):
                yield _Region(
                    (image, slice(top, min(top + height, H)), slice(left, min(left + width, W))), (height, width)
                )


def _cut(qkv: Tensor, padding: Tensor, region: _Region) -> tuple[Tensor, Tensor, Tensor]:
    """A region's queries (h, rows, cols, D), and its keys and values (h, K, D) with padding."""
    q, k, v = qkv[region.place].permute(2, 3, 0, 1, 4)  # each (h, rows, cols, D)
    height, width = region.key_grid
    if k.shape[1:3] != (height, width):
        whole = padding[1:, :, None, None].repeat(1, 1, height, width, 1)
        whole[:, :, : k.shape[1], : k.shape[2]] = torch.stack((k, v))
        k, v = whole
    return q.contiguous(), k.flatten(1, 2).contiguous(), v.flatten(1, 2).contiguous()


def _merge(gq: Tensor, gk: Tensor, gv: Tensor, region: _Region, grad_padding: Tensor) -> Tensor:
    """Inverts :func:`_cut` for gradients: (rows, cols, 3, h, D); adds the padding's share to ``grad_padding``."""
    gk, gv = (x.unflatten(1, region.key_grid) for x in (gk, gv))
    num_rows, num_cols = gq.shape[1:3]
    for target, x in zip(grad_padding[1:], (gk, gv), strict=True):
        target += x[:, num_rows:].sum((1, 2)) + x[:, :num_rows, num_cols:].sum((1, 2))
    return torch.stack((gq, gk[:, :num_rows, :num_cols], gv[:, :num_rows, :num_cols])).permute(2, 3, 0, 1, 4)


def _terms(q: Tensor, row_table: Tensor, col_table: Tensor) -> tuple[Tensor, Tensor]:
    """What rows and columns add to the logits: (h, rows, cols, key rows) and (h, rows, cols, key cols)."""
    _, num_rows, num_cols, _ = q.shape
    return (
        torch.einsum('hrcd,rkd->hrck', q, row_table[:num_rows]).contiguous(),
        torch.einsum('hrcd,ckd->hrck', q, col_table[:num_cols]).contiguous(),
    )


def blocks(length: int, size: int) -> Iterator[slice]:
    """Slices of ``size``, at least 1, that cover ``length``."""
    size = max(1, size)
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
