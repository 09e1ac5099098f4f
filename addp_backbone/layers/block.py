"""The transformer layers that the backbone, the ADDP encoder and decoder and the token predictor share.

Parameter names are those of timm's ViT (``attn.qkv``, ``attn.proj``, ``mlp.fc1`` ...), so that checkpoints load by
name. Shapes: B images, N tokens, C width, h heads, D head width.
"""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone.layers.block_attention import block_attention
from addp_backbone.layers.cpu_attention import relative_attention
from addp_backbone.layers.dropout import Dropout, dropout
from addp_backbone.layers.grid import relative_positions
from addp_backbone.layers.mlp import Mlp
from addp_backbone.layers.windows import merge_windows, pad_to_windows, partition_windows

NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Cuts an image into square patches and embeds each linearly.

    Args:
        patch_size: Side of a patch, in pixels.
        width: Channels of a token.
    """

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds images (B, 3, H, W) as a token map (B, H / patch_size, W / patch_size, C).

        Raises:
            ValueError: If H or W is no multiple of the patch size.
        """
        H, W = images.shape[-2:]
        if H % self.patch_size or W % self.patch_size:
            raise ValueError(
                f'image height and width must be multiples of the patch size {self.patch_size}, got {H} x {W}: '
                f'set pad_size_divisor={self.patch_size} in the data preprocessor (or size_divisor in mmseg)'
            )
        return self.proj(images).permute(0, 2, 3, 1)


@MODELS.register_module(name='ChannelLN')
class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of a (B, C, H, W) map, each place alone (registered as ``ChannelLN`` for ``norm_cfg``).

    Args:
        num_features: Channels.
        eps: Added to the variance; ViTDet uses 1e-6.
    """

    def __init__(self, num_features: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, H, W) to the same shape."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head self-attention, optionally within windows and with decomposed relative positions.

    Relative positions add ``q . R_h[row offset] + q . R_w[column offset]`` to each logit (ViTDet, MViTv2), without ever
    making an N x N tensor. On a CPU :func:`addp_backbone.layers.cpu_attention.relative_attention` does it in blocks.
    Elsewhere, and with dropout, fused attention does: the two terms become extra columns of the queries, which the keys
    pick with one-hot columns. Without them two bytes on a CPU go to
    :func:`addp_backbone.layers.block_attention.block_attention`, all else is fused.

    Args:
        width: Channels of a token.
        num_heads: Number of heads.
        dropout: Dropout on attention weights and on the output.
        window_size: Side of the windows attended within; 0 for the whole map.
        rel_pos_size: None for no relative positions; else the number of places along an axis that the
            (zero-initialised) tables are made for. Other sizes interpolate the tables.
    """

    def __init__(
        self, width: int, num_heads: int, dropout: float = 0.0, window_size: int = 0, rel_pos_size: int | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = Dropout(dropout)
        self.rel_pos_h: nn.Parameter | None = None
        self.rel_pos_w: nn.Parameter | None = None
        if rel_pos_size is not None:
            head_width = width // num_heads
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * rel_pos_size - 1, head_width))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * rel_pos_size - 1, head_width))

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Attends.

        Args:
            x: (B, N, C).
            grid: (H, W) with H * W = N; needed for windows and relative positions.

        Returns:
            (B, N, C).
        """
        if self.rel_pos_h is not None and x.device.type == 'cpu' and not (self.training and self.dropout):
            out = self._attend_in_blocks(x, grid)
        elif self.window_size == 0:
            out = self._attend(self.qkv(x), grid)
        else:
            assert grid is not None, 'window attention needs the grid'
            out = self._attend_in_windows(x, grid)
        return self.proj_drop(self.proj(out))

    def _attend_in_blocks(self, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """(B, N, C) -> (B, N, C), windows or the whole map. A place of padding has zeros, hence the bias, as queries, keys and values."""
        assert grid is not None and self.rel_pos_h is not None and self.rel_pos_w is not None, (
            'relative positions need the grid'
        )
        B, N, C = x.shape
        heads = self.num_heads, C // self.num_heads
        row_table, col_table = (
            relative_positions(table, self.window_size or length)
            for table, length in zip((self.rel_pos_h, self.rel_pos_w), grid, strict=True)
        )
        qkv = self.qkv(x).view(B, *grid, 3, *heads)
        return relative_attention(qkv, self.qkv.bias.view(3, *heads), row_table, col_table, self.window_size).view(
            B, N, C
        )

    def _attend_in_windows(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C). ViTDet pads *before* the qkv layer: padding is zeros before its bias is added."""
        B, N, C = x.shape
        H, W = grid
        s = self.window_size
        qkv = F.linear(x, self.qkv.weight).reshape(B, H, W, 3 * C)
        qkv = pad_to_windows(qkv, s)
        padded_grid = qkv.shape[1], qkv.shape[2]
        windows = partition_windows(qkv, s).reshape(-1, s * s, 3 * C) + self.qkv.bias.to(qkv.dtype)
        out = self._attend(windows, (s, s))  # (B * windows, s * s, C)
        out = merge_windows(out.reshape(-1, s, s, C), padded_grid)
        return out[:, :H, :W].reshape(B, N, C)

    def _attend(self, qkv: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """(B, N, 3C) -> (B, N, C): all N tokens see each other."""
        B, N, C3 = qkv.shape
        D = C3 // 3 // self.num_heads
        q, k, v = qkv.reshape(B, N, 3, self.num_heads, D).permute(2, 0, 3, 1, 4)  # each (B, h, N, D)
        scale = D**-0.5
        if self.rel_pos_h is not None:
            assert grid is not None, 'relative positions need the grid'
            q, k, v = self._append_relative_positions(q * scale, k, v, q, grid)
            scale = 1.0
        p = self.dropout if self.training else 0.0
        if (
            p and q.device.type == 'cpu'
        ):  # where fused attention would keep all weights too, in float32, and draw the mask slowly
            out = dropout((q * scale @ k.transpose(-2, -1)).softmax(-1), p) @ v
        elif q.device.type == 'cpu' and q.element_size() == 2:
            out = block_attention(q, k, v, scale)
        else:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=p, scale=scale)
        return out[..., :D].transpose(1, 2).reshape(B, N, C3 // 3)

    def _append_relative_positions(
        self, q_scaled: Tensor, k: Tensor, v: Tensor, q: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Appends H + W columns (padded to a multiple of 8, as fused kernels want) to queries, keys and values."""
        assert self.rel_pos_h is not None and self.rel_pos_w is not None
        B, heads, N, D = q.shape
        H, W = grid
        rows_HHD = relative_positions(self.rel_pos_h, H).to(q.dtype)
        cols_WWD = relative_positions(self.rel_pos_w, W).to(q.dtype)
        q_map = q.reshape(B, heads, H, W, D)
        row_terms = torch.einsum('bnhwd,hkd->bnhwk', q_map, rows_HHD).reshape(B, heads, N, H)
        col_terms = torch.einsum('bnhwd,wkd->bnhwk', q_map, cols_WWD).reshape(B, heads, N, W)
        place = torch.arange(N, device=q.device)
        row_pick = F.one_hot(place // W, H)  # (N, H)
        col_pick = F.one_hot(place % W, W)  # (N, W)
        pick = torch.cat((row_pick, col_pick), dim=-1).to(q.dtype).expand(B, heads, N, H + W)
        fill = -(D + H + W) % 8
        q_all = F.pad(torch.cat((q_scaled, row_terms, col_terms), dim=-1), (0, fill))
        k_all = F.pad(torch.cat((k, pick), dim=-1), (0, fill))
        v_all = F.pad(v, (0, H + W + fill))  # fused kernels want values as wide as keys
        return q_all, k_all, v_all


class Block(nn.Module):
    """A pre-norm transformer block: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    Args:
        width: Channels of a token.
        num_heads: Attention heads.
        dropout: Dropout in attention (weights and output) and in the MLP.
        drop_path: Probability of leaving out a residual branch, per sample (stochastic depth).
        window_size: See :class:`Attention`.
        rel_pos_size: See :class:`Attention`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        window_size: int = 0,
        rel_pos_size: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, num_heads, dropout, window_size, rel_pos_size)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, dropout)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Maps tokens (B, N, C) to (B, N, C); ``grid`` as in :meth:`Attention.forward`."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))
