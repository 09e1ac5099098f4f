"""The VQGAN tokenizer: images to ids of a codebook and back (released as ``vqgan_jax_strongaug``).

It differs from the usual VQGAN: no attention, average pooling between levels, convolutions without bias in the residual
blocks, and a shortcut that acts on the branch's output. Parameter names are those of the released file. How to train
one is in ``pretrain/training/tokenizer_objective.py``. Shapes: B images, g x g grid, L = g * g tokens, C latent
channels, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_GROUPS = 32
NORM_EPS = 1e-6


class Quantized(NamedTuple):
    """What the quantiser returns.

    Attributes:
        tokens: (B, L) int64 ids in raster order.
        latents: (B, C, g, g) the code vectors of ``tokens``, float32.
    """

    tokens: Tensor
    latents: Tensor


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


def _prepare(x: Tensor, first_layer: nn.Conv2d) -> Tensor:
    """Converts the input of a network to its precision and to plain NCHW layout, whatever layout it came in.

    So the layout inside follows from the weights alone, see :meth:`VQGANTokenizer.lay_out`.
    """
    return x.to(first_layer.weight.dtype).contiguous()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions without bias, each after GroupNorm and swish.

    Where the width changes, the block returns ``nin_shortcut(h) + h`` with ``h`` its *branch*, so its input arrives
    through the branch only. That is unusual, and the released weights were trained with it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dropout: Dropout probability before the second convolution.
        norm_groups: Number of groups of the GroupNorm layers.
    """

    def __init__(
        self, in_channels: int, out_channels: int, dropout: float = 0.0, norm_groups: int = NORM_GROUPS
    ) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = _norm(out_channels, norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.nin_shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) to (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return x + h if self.nin_shortcut is None else self.nin_shortcut(h) + h


class _Middle(nn.Module):
    """The two residual blocks at the lowest resolution."""

    def __init__(self, channels: int, dropout: float, norm_groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, dropout, norm_groups)
        self.block_2 = ResidualBlock(channels, channels, dropout, norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class _Upsample(nn.Module):
    """Nearest-neighbour enlargement by two, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode='nearest'))


class _Level(nn.Module):
    """The residual blocks of one resolution; in the decoder also the step to the next one."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, dropout: float, norm_groups: int, upsample: bool
    ) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(
                ResidualBlock(in_channels if i == 0 else out_channels, out_channels, dropout, norm_groups)
                for i in range(num_blocks)
            )
        )
        self.upsample: _Upsample | None = _Upsample(out_channels) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return x if self.upsample is None else self.upsample(x)


class TokenizerEncoder(nn.Module):
    """Image to latents before quantisation; halves the resolution between levels by average pooling.

    Args:
        widths: Channels of each level, finest first.
        num_res_blocks: Residual blocks of a level.
        latent_channels: Channels of the output.
        dropout: Dropout probability in the residual blocks.
        norm_groups: Number of groups of the GroupNorm layers.
    """

    def __init__(
        self, widths: Sequence[int], num_res_blocks: int, latent_channels: int, dropout: float, norm_groups: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        inputs = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(
            _Level(before, width, num_res_blocks, dropout, norm_groups, upsample=False)
            for before, width in zip(inputs, widths, strict=True)
        )
        self.mid = _Middle(widths[-1], dropout, norm_groups)
        self.norm_out = _norm(widths[-1], norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, H, W) to latents (B, latent_channels, H / 2**(levels - 1), W / 2**(levels - 1))."""
        x = self.conv_in(images)
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else F.avg_pool2d(x, 2))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class TokenizerDecoder(nn.Module):
    """Latents to images; ``up[0]`` is the finest level, as in the released file. Arguments: see the encoder."""

    def __init__(
        self, widths: Sequence[int], num_res_blocks: int, latent_channels: int, dropout: float, norm_groups: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], dropout, norm_groups)
        inputs = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(
            _Level(before, width, num_res_blocks, dropout, norm_groups, upsample=i > 0)
            for i, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = _norm(widths[0], norm_groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Maps latents (B, latent_channels, g, g) to images (B, 3, g * 2**(levels - 1), ...), not clamped."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """The K code vectors.

    Args:
        num_codes: Number of codes K.
        latent_channels: Channels C of a code.
    """

    def __init__(self, num_codes: int, latent_channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, latent_channels)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    def forward(self, latents: Tensor) -> Quantized:
        """Finds the code nearest to each of the latents (B, C, g, g), by squared Euclidean distance.

        Always runs in float32. Distances by matrix product find the two nearest codes; exact differences decide between
        them, because the rounding of the product can exceed the gap between the two.
        """
        B, C, H, W = latents.shape
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            z = latents.float().permute(0, 2, 3, 1).reshape(-1, C)  # (BL, C)
            codes = self.embedding.weight.float()
            distances = torch.addmm(
                codes.square().sum(1), z, codes.t(), alpha=-2
            )  # (BL, K), without |z|^2, which is the same for all codes
            nearest = distances.topk(min(2, len(codes)), largest=False).indices  # (BL, 2)
            choice = (z[:, None] - codes[nearest]).square().sum(-1).argmin(1, keepdim=True)
            tokens = nearest.gather(1, choice).reshape(B, H * W)
        return Quantized(tokens, self.lookup(tokens, (H, W)))

    def lookup(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The code vectors (B, C, H, W) float32 of tokens (B, H * W)."""
        vectors = self.embedding(tokens).float()  # (B, L, C)
        return vectors.transpose(1, 2).unflatten(2, grid)


class VQGANTokenizer(nn.Module):
    """Encoder, codebook and decoder. Whatever precision it runs in, its inputs and outputs are float32.

    Args:
        base_channels: Channels of the finest level; the width of every level must be a multiple of ``norm_groups``.
        channel_multipliers: Width of each level divided by ``base_channels``, finest first. The patch size is
            2**(levels - 1).
        num_res_blocks: Residual blocks of a level.
        latent_channels: Channels C of a code.
        num_codes: Number of codes K.
        dropout: Dropout probability in the residual blocks, when a tokenizer is trained.
        norm_groups: Number of groups of the GroupNorm layers. A group of one channel loses its mean and contrast, and
            with them the image's: give narrow networks few groups (the released one has four or more channels a group).

    Raises:
        ValueError: If a level's width is not a multiple of ``norm_groups``.
    """

    def __init__(
        self,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        latent_channels: int = 256,
        num_codes: int = 1024,
        dropout: float = 0.0,
        norm_groups: int = NORM_GROUPS,
    ) -> None:
        super().__init__()
        widths = tuple(base_channels * multiplier for multiplier in channel_multipliers)
        if not widths or any(width < 1 or width % norm_groups for width in widths):
            raise ValueError(
                f'every level of the tokenizer needs a multiple of {norm_groups} channels, got {widths}: '
                f'change base_channels ({base_channels}), channel_multipliers ({channel_multipliers}) or norm_groups'
            )
        self.patch_size = 2 ** (len(widths) - 1)
        self.latent_channels = latent_channels
        self.num_codes = num_codes
        self.encoder = TokenizerEncoder(widths, num_res_blocks, latent_channels, dropout, norm_groups)
        self.decoder = TokenizerDecoder(widths, num_res_blocks, latent_channels, dropout, norm_groups)
        self.quantize = Codebook(num_codes, latent_channels)

    @property
    def codebook(self) -> Tensor:
        """The code vectors (K, C)."""
        return self.quantize.embedding.weight

    def set_precision(self, dtype: torch.dtype) -> None:
        """Runs the convolutional networks in ``dtype``; the codebook stays float32."""
        self.encoder.to(dtype)
        self.decoder.to(dtype)

    def lay_out(self, channels_last: bool = True) -> None:
        """Chooses the layout of the convolutions' weights, which activations take over.

        Channels-last saves converting weights in every call, in 16 bits on a CPU 1.5 times the network's own time, and
        is what training uses. GroupNorm rounds more in it (float32 latents are off by 1.4e-5 instead of 1.9e-6, and
        by up to 2e-4 where they are large), which can change a token at the border of two codes; where float32 is
        promised the layout is the plain one.

        Args:
            channels_last: False for the plain layout (NCHW), the one a new tokenizer has.
        """
        self.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def encode_continuous(self, images: Tensor) -> Tensor:
        """The latents (B, C, g, g) float32 of images (B, 3, H, W) in [0, 1], before quantisation.

        Raises:
            ValueError: If H or W is not a multiple of the patch size.
        """
        H, W = images.shape[-2:]
        if H % self.patch_size or W % self.patch_size:
            raise ValueError(
                f'the tokenizer needs images whose sides are multiples of {self.patch_size} '
                f'(2**(levels - 1)), got {H} x {W}: resize or crop the images'
            )
        return self.encoder(_prepare(images, self.encoder.conv_in)).float()

    def encode(self, images: Tensor) -> Quantized:
        """Tokenises images.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            Tokens (B, L) int64 and their code vectors (B, C, g, g) float32.
        """
        return self.quantize(self.encode_continuous(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32, about [0, 1] but not clamped, of latents (B, C, g, g)."""
        return self.decoder(_prepare(latents, self.decoder.conv_in)).float()

    def lookup(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The code vectors (B, C, H, W) of tokens (B, H * W)."""
        return self.quantize.lookup(tokens, grid)

    def soft_latents(self, probs: Tensor, grid: tuple[int, int]) -> Tensor:
        """The expected code vector of every token: the mean of the codebook under the predicted distribution.

        Args:
            probs: (B, H * W, K), rows sum to 1.
            grid: (H, W).

        Returns:
            (B, C, H, W) float32.
        """
        with torch.autocast(probs.device.type, enabled=False):
            vectors = probs.float() @ self.codebook.float()  # (B, L, C)
        return vectors.transpose(1, 2).unflatten(2, grid)
