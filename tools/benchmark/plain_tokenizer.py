"""The tokenizer of the plain ADDP (plain_addp.py), and the sizes that both sides are built from; no command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6


@dataclass(frozen=True)
class Sizes:
    """What both sides are built from; see :class:`pretrain.ADDP` and :class:`pretrain.VQGANTokenizer`."""

    width: int = 768
    depth: int = 12
    num_heads: int = 12
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    img_size: int = 256
    patch_size: int = 16
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 256
    num_codes: int = 1024
    dropout: float = 0.1

    @property
    def side(self) -> int:
        """Places along a side of the token grid."""
        return self.img_size // self.patch_size

    @property
    def vocabulary(self) -> int:
        """Codes, 1000 reserved ids and the mask's."""
        return self.num_codes + 1001


class _ResidualBlock(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, before, NORM_EPS), nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.GroupNorm(32, after, NORM_EPS), nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(after, after, 1, bias=False) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class _VQGANHalf(nn.Module):
    """Encoder or decoder."""

    mid: Any
    down: Any
    up: Any

    def __init__(self, sizes: Sizes, encoder: bool) -> None:
        super().__init__()
        widths = [sizes.base_channels * multiplier for multiplier in sizes.channel_multipliers]
        first, last = widths[0], widths[-1]
        self.conv_in = (
            nn.Conv2d(3, first, 3, padding=1, bias=False)
            if encoder
            else nn.Conv2d(sizes.latent_channels, last, 3, padding=1)
        )
        levels = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[max(i - 1, 0)] if encoder else widths[min(i + 1, len(widths) - 1)]
            level: Any = nn.Module()
            level.block = nn.Sequential(
                *(_ResidualBlock(before if j == 0 else width, width) for j in range(sizes.num_res_blocks))
            )
            if not encoder and i:
                level.upsample = nn.Module()
                level.upsample.conv = nn.Conv2d(width, width, 3, padding=1)
            levels.append(level)
        self.down, self.up = (levels, None) if encoder else (None, levels)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.block_2 = _ResidualBlock(last, last), _ResidualBlock(last, last)
        self.norm_out = nn.GroupNorm(32, last if encoder else first, NORM_EPS)
        self.conv_out = nn.Conv2d(last, sizes.latent_channels, 1) if encoder else nn.Conv2d(first, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        if self.down is not None:
            for i, level in enumerate(self.down):
                x = level.block(F.avg_pool2d(x, 2) if i else x)
        x = self.mid.block_2(self.mid.block_1(x))
        for level in reversed(self.up) if self.up is not None else ():
            x = level.block(x)
            if hasattr(level, 'upsample'):
                x = level.upsample.conv(F.interpolate(x, scale_factor=2.0, mode='nearest'))
        return self.conv_out(F.silu(self.norm_out(x)))


class PlainTokenizer(nn.Module):
    """Encoder, codebook and decoder."""

    quantize: Any

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder, self.decoder = _VQGANHalf(sizes, True), _VQGANHalf(sizes, False)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(sizes.num_codes, sizes.latent_channels)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L) and code vectors (B, C, g, g) of images (B, 3, H, W)."""
        z = self.encoder(images).permute(0, 2, 3, 1)  # (B, g, g, C)
        codes = self.quantize.embedding.weight
        flat = z.flatten(0, 2)
        distances = flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.t()
        ids = distances.argmin(1)
        return ids.view(len(z), -1), codes[ids].view_as(z).permute(0, 3, 1, 2).contiguous()
