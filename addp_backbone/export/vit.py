"""``ADDPViT``'s forward pass in operators that trace with any input size.

The training code cuts windows and blocks of queries in Python loops whose length depends on the input. Here windows are
looked up by index, relative positions are extra columns of queries and keys, and every table is resized to symbolic
sizes, so that one graph serves all sizes.

Shapes: B images, (H, W) grid, N = H * W tokens, C width, h heads, D head width, s side of a window, Q tokens that see
each other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone.layers.block import Attention
from addp_backbone.networks.vit import ADDPViT


class TracedViT(nn.Module):
    """An ``ADDPViT`` for ``torch.export``: equal outputs, in evaluation.

    Args:
        vit: The backbone; its weights are shared.
    """

    vit: Any  # its layers have names that nn.Module does not know

    def __init__(self, vit: ADDPViT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps images (B, 3, H_px, W_px) to the (B, C, H, W) maps of ``out_indices``."""
        vit = self.vit
        x = vit.patch_embed(images)  # (B, H, W, C)
        B, H, W, C = x.shape
        x = x.reshape(B, H * W, C) + resize_positions(vit.pos_embed, vit.pretrain_grid, (H, W))
        if vit.tokenizer_norm is not None:
            x = vit.tokenizer_norm(x)
        sizes = {block.attn.window_size for block in vit.blocks} - {0}
        indices = {size: window_index((H, W), size) for size in sizes}  # once for all blocks
        maps = []
        for i, block in enumerate(vit.blocks):
            x = x + attend(block.attn, block.norm1(x), (H, W), indices.get(block.attn.window_size))
            x = x + block.mlp(block.norm2(x))
            if i in vit.out_indices:
                maps.append(x.transpose(1, 2).reshape(B, C, H, W))
            if i == vit.out_indices[-1]:
                break
        return tuple(maps)


def resize_positions(pos_embed: Tensor, old_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Resizes absolute positions (1, N_old, C) to (1, N, C), bicubic without antialiasing."""
    x = pos_embed.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    x = F.interpolate(x, size=grid, mode='bicubic', antialias=False)
    return x.flatten(2).transpose(1, 2)


def attend(attention: Attention, x: Tensor, grid: tuple[int, int], windows: tuple[Tensor, Tensor] | None) -> Tensor:
    """What ``attention(x, grid)`` computes: (B, N, C) -> (B, N, C); ``windows`` is :func:`window_index`'s answer."""
    B, _, C = x.shape
    heads, s = attention.num_heads, attention.window_size
    qkv = attention.qkv(x)  # (B, N, 3C)
    if windows is not None:
        into_windows, back = windows
        padding = attention.qkv.bias.expand(B, 1, 3 * C)  # ViTDet pads with zeros before the projection
        qkv = torch.cat((qkv, padding), dim=1)[:, into_windows.flatten()].reshape(-1, s * s, 3 * C)
        tokens = (s, s)
    else:
        tokens = grid
    q, k, v = qkv.unflatten(-1, (3, heads, C // heads)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, Q, D)
    q = q * q.shape[-1] ** -0.5
    if attention.rel_pos_h is not None and attention.rel_pos_w is not None:
        tables = attention.rel_pos_h, attention.rel_pos_w
        q, k = append_relative_positions(q, k, tokens, tables, fixed=bool(s))
    out = (q @ k.transpose(-2, -1)).softmax(-1) @ v  # (B, h, Q, D)
    out = out.transpose(1, 2).flatten(2)  # (B, Q, C)
    if windows is not None:
        out = out.reshape(B, -1, C)[:, back]
    return attention.proj(out)


def window_index(grid: tuple[int, int], window_size: int) -> tuple[Tensor, Tensor]:
    """Where each window's tokens are in the map, and where each token of the map is among the windows' tokens.

    Args:
        grid: (H, W) of the map.
        window_size: s; windows at the bottom and on the right are completed.

    Returns:
        (windows, s * s) int64 into H * W tokens followed by a padding token, and (H * W,) int64 into the windows'
        tokens one after the other.
    """
    (H, W), s = grid, window_size
    num_rows, num_cols = (H + s - 1) // s, (W + s - 1) // s
    rows = torch.arange(num_rows * s).reshape(num_rows, 1, s, 1)
    cols = torch.arange(num_cols * s).reshape(1, num_cols, 1, s)
    inside = (rows < H) & (cols < W)
    into_windows = torch.where(inside, rows * W + cols, H * W).reshape(num_rows * num_cols, s * s)
    row, col = torch.arange(H)[:, None], torch.arange(W)[None]
    window = row // s * num_cols + col // s
    back = window * (s * s) + row % s * s + col % s
    return into_windows, back.flatten()


def append_relative_positions(
    q: Tensor, k: Tensor, grid: tuple[int, int], tables: tuple[Tensor, Tensor], fixed: bool
) -> tuple[Tensor, Tensor]:
    """Turns relative positions into H + W more columns: ``q @ k.T`` then has them.

    Args:
        q: (B, h, Q, D) queries, already divided by sqrt(D).
        k: (B, h, Q, D) keys.
        grid: (H, W) of the Q tokens.
        tables: Of row and of column offsets, (2 * S - 1, D).
        fixed: Whether the grid is known now (windows), so that a table that fits is taken as it is.

    Returns:
        Queries and keys, (B, h, Q, D + H + W).
    """
    H, W = grid
    D = q.shape[-1]
    rows_HHD, cols_WWD = (relative_table(table, size, fixed) for table, size in zip(tables, grid, strict=True))
    unscaled = (q * D**0.5).unflatten(2, (H, W))  # (B, h, H, W, D)
    row_terms = unscaled @ rows_HHD.transpose(1, 2)
    col_terms = (unscaled.transpose(2, 3) @ cols_WWD.transpose(1, 2)).transpose(2, 3)
    row_pick = (torch.arange(H)[:, None] == torch.arange(H)[None])[:, None].expand(H, W, H)
    col_pick = (torch.arange(W)[:, None] == torch.arange(W)[None])[None].expand(H, W, W)
    pick = torch.cat((row_pick, col_pick), dim=-1).flatten(0, 1).to(k.dtype)  # (Q, H + W)
    pick = pick.expand(k.shape[0], k.shape[1], H * W, H + W)
    terms = torch.cat((row_terms, col_terms), dim=-1).flatten(2, 3)
    return torch.cat((q, terms), dim=-1), torch.cat((k, pick), dim=-1)


def relative_table(table: Tensor, size: int, fixed: bool) -> Tensor:
    """(2 * S - 1, D) -> (size, size, D), entry [q, k] for the offset q - k; interpolated linearly if need be."""
    wanted = 2 * size - 1
    if not (fixed and table.shape[0] == wanted):
        table = F.interpolate(table.t()[None], size=wanted, mode='linear')[0].t()
    index = torch.arange(size)
    return table[index[:, None] - index[None] + size - 1]
