"""Attention in two bytes on a CPU, in blocks of weights that stay in the cache; torch's fused attention takes longer there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from addp_backbone.layers.cpu_attention import blocks

_BLOCK = 2**21  # bytes of a block of weights


def block_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``softmax(q k^T scale) v``; the backward pass computes the weights again, so that no N x N tensor is kept.

    Args:
        q: (B, h, N, D).
        k: As q.
        v: As q.
        scale: Of the logits.

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
        with torch.autocast(grad.device.type, enabled=False):
            q, k, v, grad = (x.flatten(0, 1) for x in (ctx.saved_tensors[0] * ctx.scale, *ctx.saved_tensors[1:], grad))
            grad_q = torch.empty_like(q)
            grad_k, grad_v = (
                torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v)
            )  # sums of blocks
            for heads, rows in _blocks(q):
                queries, grads = q[heads, rows], grad[heads, rows]
                weights = _weights(queries, k[heads])
                grad_weights = torch.bmm(grads, v[heads].mT)
                grad_logits = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                grad_v[heads] += torch.bmm(weights.mT, grads)
                grad_k[heads] += torch.bmm(grad_logits.mT, queries)
                grad_q[heads, rows] = torch.bmm(grad_logits, k[heads])
            return (
                grad_q.mul_(ctx.scale).view(shape),
                grad_k.to(k.dtype).view(shape),
                grad_v.to(v.dtype).view(shape),
                None,
            )


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """(heads, queries, N)."""
    return torch.bmm(q, k.mT).softmax(-1)


def _blocks(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Heads and rows of each block: whole heads if they fit, else rows of one head."""
    num_heads, N, _ = q.shape
    num_rows = min(N, max(1, _BLOCK // (N * q.element_size())))
    heads = _BLOCK // (N * num_rows * q.element_size())
    for head in blocks(num_heads, heads):
        for rows in blocks(N, num_rows):
            yield head, rows
