"""The transformer layers that the backbone, the ADDP encoder and decoder and the token predictor share.

Parameter names are those of timm's ViT (``attn.qkv``, ``attn.proj``, ``mlp.fc1`` ...), so that checkpoints load by
name. Shapes: B images, N tokens, C width, h heads, D head width.
"""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn

from addp_backbone.layers.attention import attend
from addp_backbone.layers.dropout import Dropout
from addp_backbone.layers.mlp import Mlp

NORM_EPS = 1e-6

# LayerNorm over the channels of a (B, C, H, W) map, each pixel on its own, for norm_cfg=dict(type='ChannelLN').
MODELS.register_module(name='ChannelLN', module=LayerNorm2d)


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
            ValueError: If H or W is not a multiple of the patch size.
        """
        H, W = images.shape[-2:]
        if H % self.patch_size or W % self.patch_size:
            raise ValueError(
                f'image height and width must be multiples of the patch size {self.patch_size}, got {H} x {W}: '
                f'set pad_size_divisor={self.patch_size} in the data preprocessor (or size_divisor in mmseg)'
            )
        return self.proj(images).permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Multi-head self-attention, optionally within windows and with decomposed relative positions.

    Which kernel computes it is decided by :func:`addp_backbone.layers.attention.attend`.

    Args:
        width: Channels of a token.
        num_heads: Number of heads; must divide ``width``.
        dropout: Dropout probability of attention weights and output.
        window_size: Side of the windows attended within, in tokens; 0 for the whole map.
        rel_pos_size: Number of tokens along an axis that the (zero-initialised) tables of relative positions are made
            for, other sizes interpolate them; None for no relative positions.
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
        heads = self.num_heads, x.shape[-1] // self.num_heads  # h, D
        q, k, v = self.qkv(x).unflatten(-1, (3, *heads)).unbind(2)  # each (B, N, h, D)
        out = attend(
            q,
            k,
            v,
            grid=grid,
            window_size=self.window_size,
            padding=self.qkv.bias.view(3, *heads),  # ViTDet pads with zeros *before* this layer
            rel_pos=None if self.rel_pos_h is None or self.rel_pos_w is None else (self.rel_pos_h, self.rel_pos_w),
            dropout=self.dropout if self.training else 0.0,
        )  # (B, N, h, D)
        return self.proj_drop(self.proj(out.flatten(2)))


class Block(nn.Module):
    """A pre-norm transformer block: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    Args:
        width: Channels of a token.
        num_heads: Number of attention heads.
        dropout: Dropout probability in attention (weights and output) and in the MLP.
        drop_path: Probability of skipping a residual branch, drawn for each sample (stochastic depth).
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
