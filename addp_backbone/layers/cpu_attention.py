"""Attention on a CPU in blocks of logits that fit the processor's cache, forward and backward.

:func:`relative_attention` is for decomposed relative positions, where the logit of a query and a key is
``q . k / sqrt(D) + q . R_h[row offset] + q . R_w[column offset]`` (ViTDet, MViTv2). It cuts windows from the map one at
a time, so that neither a padded nor a partitioned copy of the map is made; padding tokens are attended to but do not
attend. :func:`block_attention` is for attention without positions in 16-bit precision, where it is faster than torch's
fused attention. In both, the backward pass computes the weights again: neither pass ever holds an N x N tensor.

Shapes: B images, (H, W) grid, N = H * W, h heads, D head width; in a region (a window or the whole map): Q queries, K
keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Bytes of a block of logits. The forward pass of relative_attention holds one, its backward pass a few, which have to
# stay in the cache; 16-bit matrix products are so fast that a block must be larger to be worth its calls.
_FORWARD_BLOCK = 2**23
_BACKWARD_BLOCK = {2: 2**21, 4: 2**20, 8: 2**20}  # by the bytes of an element
_BLOCK = 2**21  # of block_attention


class _Region(NamedTuple):
    """Queries that attend to the same keys: those of a window without its padding, or of the whole map."""

    part: tuple[int, slice, slice]  # image, rows and columns of the queries
    key_grid: tuple[int, int]  # rows and columns of the keys, padding included


def relative_attention(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor, row_table: Tensor, col_table: Tensor, window_size: int
) -> Tensor:
    """Attends with relative positions, within windows or to the whole map.

    Args:
        q: (B, H, W, h, D), the queries.
        k: (B, H, W, h, D), the keys.
        v: (B, H, W, h, D), the values.
        padding: (3, h, D), query, key and value of a padding token, which completes windows at the bottom and on the
            right.
        row_table: (S, S, D), the embedding of the offset between query row and key row within a region; S is the
            window's size, or H without windows.
        col_table: (S, S, D), the same for columns; S is the window's size, or W without windows.
        window_size: Side of the windows, in tokens; 0 for the whole map.

    Returns:
        (B, H, W, h, D) in the precision of ``q``.
    """
    padding, row_table, col_table = (x.to(q.dtype) for x in (padding, row_table, col_table))
    return _RelativeAttention.apply(q, k, v, padding, row_table, col_table, window_size)


class _RelativeAttention(torch.autograd.Function):
    """See :func:`relative_attention`; all tensors have one precision."""

    @staticmethod
    def forward(
        ctx: Any,
        q_map: Tensor,
        k_map: Tensor,
        v_map: Tensor,
        padding: Tensor,
        row_table: Tensor,
        col_table: Tensor,
        window_size: int,
    ) -> Tensor:
        out = torch.empty(q_map.shape, dtype=q_map.dtype)
        with torch.autocast('cpu', enabled=False):
            for region in _regions(q_map, window_size):
                q, k, v = _cut(q_map, k_map, v_map, padding, region)
                terms = _terms(q, row_table, col_table)
                _region_forward(q, k, v, terms, out[region.part].permute(2, 0, 1, 3))
        ctx.save_for_backward(q_map, k_map, v_map, padding, row_table, col_table, out)
        ctx.window_size = window_size
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q_map, k_map, v_map, padding, row_table, col_table, out = ctx.saved_tensors
        grad_maps = [torch.empty(q_map.shape, dtype=q_map.dtype) for _ in range(3)]
        grad_padding, grad_row_table, grad_col_table = map(torch.zeros_like, (padding, row_table, col_table))
        with torch.autocast('cpu', enabled=False):
            for region in _regions(q_map, ctx.window_size):
                q, k, v = _cut(q_map, k_map, v_map, padding, region)
                _, num_rows, num_cols, _ = q.shape
                grad, result = (x[region.part].permute(2, 0, 1, 3).flatten(1, 2).contiguous() for x in (grad_out, out))
                mean = (grad * result).sum(-1, keepdim=True)  # (h, Q, 1)
                terms = _terms(q, row_table, col_table)
                gq, gk, gv = _region_backward(q, k, v, terms, grad, mean)
                row_terms, col_terms = terms  # which now hold their gradients
                rows, cols = row_table[:num_rows], col_table[:num_cols]
                gq += torch.einsum('hrck,rkd->hrcd', row_terms, rows) + torch.einsum('hrck,ckd->hrcd', col_terms, cols)
                grad_row_table[:num_rows] += torch.einsum('hrck,hrcd->rkd', row_terms, q)
                grad_col_table[:num_cols] += torch.einsum('hrck,hrcd->ckd', col_terms, q)
                _paste((gq, gk, gv), region, grad_maps, grad_padding)
        return *grad_maps, grad_padding, grad_row_table, grad_col_table, None


def _region_forward(q: Tensor, k: Tensor, v: Tensor, terms: tuple[Tensor, Tensor], out: Tensor) -> None:
    """Writes a region's output into ``out`` (h, rows, cols, D); the other arguments as in :func:`_region_backward`."""
    row_terms, col_terms = terms
    heads, num_rows, num_cols, _ = q.shape
    row_bytes = q.itemsize * num_cols * k.shape[1]  # the logits of a row of queries, for one head
    for head in blocks(heads, _FORWARD_BLOCK // (row_bytes * num_rows)):
        for rows in blocks(num_rows, _FORWARD_BLOCK // (row_bytes * (head.stop - head.start))):
            part = head, rows
            bias = row_terms[part][..., None] + col_terms[part][..., None, :]  # (heads, rows, cols, key rows, key cols)
            block = F.scaled_dot_product_attention(
                q[part].flatten(1, 2)[None],
                k[head][None],
                v[head][None],
                attn_mask=bias.flatten(3).flatten(1, 2)[None],
            )
            out[part] = block[0].unflatten(1, (-1, num_cols))


def _region_backward(
    q: Tensor, k: Tensor, v: Tensor, terms: tuple[Tensor, Tensor], grad: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a region's queries (but for the terms' share), keys and values.

    *Overwrites* the terms with their gradients.

    Args:
        q: (h, rows, cols, D).
        k: (h, K, D).
        v: (h, K, D).
        terms: (h, rows, cols, key rows) and (h, rows, cols, key cols), of :func:`_terms`.
        grad: (h, Q, D), the gradient of the output.
        mean: (h, Q, 1), the dot product of ``grad`` and the output, which is the mean under the attention weights of
            the products of ``grad`` and the values.
    """
    heads, num_rows, num_cols, D = q.shape
    scaled = q.flatten(1, 2) * D**-0.5
    kt, vt = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()
    row_terms, col_terms = (term.flatten(1, 2) for term in terms)
    gq = torch.empty_like(scaled)
    gk, gv = _zeros_for_sums(k), _zeros_for_sums(v)
    size = _BACKWARD_BLOCK[q.itemsize] // q.itemsize // k.shape[1]  # pairs of head and query
    for queries in blocks(num_rows * num_cols, size):
        for head in blocks(heads, size // (queries.stop - queries.start)):
            part = head, queries
            logits = torch.bmm(scaled[part], kt[head])  # (heads, queries, K)
            grid = logits.unflatten(2, (row_terms.shape[-1], col_terms.shape[-1]))
            grid.add_(row_terms[part][..., None]).add_(col_terms[part][..., None, :])
            probs = logits.softmax(-1)
            _add_product(gv[head], probs.transpose(1, 2), grad[part])
            torch.bmm(grad[part], vt[head], out=logits)
            logits.sub_(mean[part]).mul_(probs)  # the gradient of the logits
            _add_product(gk[head], logits.transpose(1, 2), scaled[part])
            gq[part] = torch.bmm(logits, k[head])
            row_terms[part] = grid.sum(-1)
            col_terms[part] = grid.sum(-2)
    return (gq * D**-0.5).view_as(q), gk.to(k.dtype), gv.to(v.dtype)


def _regions(q_map: Tensor, window_size: int) -> Iterator[_Region]:
    B, H, W = q_map.shape[:3]
    height, width = (window_size, window_size) if window_size else (H, W)
    for image in range(B):
        for top in range(0, H, height):
            for left in range(0, W, width):
                rows, cols = slice(top, min(top + height, H)), slice(left, min(left + width, W))
                yield _Region((image, rows, cols), (height, width))


def _cut(
    q_map: Tensor, k_map: Tensor, v_map: Tensor, padding: Tensor, region: _Region
) -> tuple[Tensor, Tensor, Tensor]:
    """A region's queries (h, rows, cols, D), and its keys and values (h, K, D) with padding."""
    q, k, v = (x[region.part].permute(2, 0, 1, 3) for x in (q_map, k_map, v_map))  # each (h, rows, cols, D)
    height, width = region.key_grid
    if k.shape[1:3] != (height, width):
        whole = padding[1:, :, None, None].repeat(1, 1, height, width, 1)
        whole[:, :, : k.shape[1], : k.shape[2]] = torch.stack((k, v))
        k, v = whole
    return q.contiguous(), k.flatten(1, 2).contiguous(), v.flatten(1, 2).contiguous()


def _paste(
    grads: tuple[Tensor, Tensor, Tensor], region: _Region, grad_maps: list[Tensor], grad_padding: Tensor
) -> None:
    """Inverts :func:`_cut` for gradients: writes them into the maps, adds the padding's share to ``grad_padding``."""
    gq, gk, gv = grads
    gk, gv = (x.unflatten(1, region.key_grid) for x in (gk, gv))
    num_rows, num_cols = gq.shape[1:3]
    for target, x in zip(grad_padding[1:], (gk, gv), strict=True):
        target += x[:, num_rows:].sum((1, 2)) + x[:, :num_rows, num_cols:].sum((1, 2))
    for grad_map, x in zip(grad_maps, (gq, gk[:, :num_rows, :num_cols], gv[:, :num_rows, :num_cols]), strict=True):
        grad_map[region.part] = x.permute(1, 2, 0, 3)


def _terms(q: Tensor, row_table: Tensor, col_table: Tensor) -> tuple[Tensor, Tensor]:
    """What rows and columns add to the logits: (h, rows, cols, key rows) and (h, rows, cols, key cols)."""
    _, num_rows, num_cols, _ = q.shape
    return (
        torch.einsum('hrcd,rkd->hrck', q, row_table[:num_rows]).contiguous(),
        torch.einsum('hrcd,ckd->hrck', q, col_table[:num_cols]).contiguous(),
    )


def block_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``softmax(q k^T scale) v``.

    Args:
        q: (B, h, N, D), the queries.
        k: (B, h, N, D), the keys.
        v: (B, h, N, D), the values.
        scale: Factor on the logits, ``D ** -0.5`` as a rule.

    Returns:
        (B, h, N, D) in the precision of q.
    """
    return _BlockAttention.apply(q, k, v, scale)


class _BlockAttention(torch.autograd.Function):
    """See :func:`block_attention`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        shape = q.shape
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = (x.flatten(0, 1) for x in (q * scale, k, v))  # (heads of all images, N, D)
            out = torch.empty_like(q)
            for heads, rows in _blocks(q):
                out[heads, rows] = torch.bmm(_weights(q[heads, rows], k[heads]), v[heads])
        return out.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        shape = grad.shape
        q, k, v = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            q, k, v, grad = (x.flatten(0, 1) for x in (q * ctx.scale, k, v, grad))
            grad_q = torch.empty_like(q)
            grad_k, grad_v = _zeros_for_sums(k), _zeros_for_sums(v)
            for heads, rows in _blocks(q):
                queries, grads = q[heads, rows], grad[heads, rows]
                weights = _weights(queries, k[heads])
                grad_weights = torch.bmm(grads, v[heads].mT)
                grad_logits = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                grad_v[heads] += torch.bmm(weights.mT, grads)
                grad_k[heads] += torch.bmm(grad_logits.mT, queries)
                grad_q[heads, rows] = torch.bmm(grad_logits, k[heads])
        grad_q.mul_(ctx.scale)
        return grad_q.view(shape), grad_k.to(k.dtype).view(shape), grad_v.to(v.dtype).view(shape), None


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """Attention weights (heads, queries, N)."""
    return torch.bmm(q, k.mT).softmax(-1)


def _blocks(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Heads and rows of each block: whole heads if they fit, else rows of one head."""
    num_heads, N, _ = q.shape
    num_rows = min(N, max(1, _BLOCK // (N * q.element_size())))
    heads = _BLOCK // (N * num_rows * q.element_size())
    for head in blocks(num_heads, heads):
        for rows in blocks(N, num_rows):
            yield head, rows


def blocks(length: int, size: int) -> Iterator[slice]:
    """Slices of ``size``, at least 1, that cover ``length``."""
    size = max(1, size)
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _zeros_for_sums(x: Tensor) -> Tensor:
    """Zeros of x's shape, precise enough to add up many blocks."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a batch of matrix products, in the precision of the total."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)
