"""What ADDP and the token predictor share: the ids of the vocabulary, the head that scores it, and initial weights.

Shapes: B images, N tokens of a sequence, C width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_NORM_EPS = 1e-5
EMBEDDING_STD = 0.02
SHORTEST_WAVELENGTH = 4.0  # tokens; shorter waves would hardly tell neighbours apart
LONGEST_WAVELENGTH = 8.0  # times the side of the grid


@dataclass(frozen=True)
class Vocabulary:
    """The codes, then 1000 ids of which one is used (MAGE reserved them for classes), then the mask's id.

    For the published 1024 codes: 2025 ids, 2024 = mask, 1100 = the fake class token. With another number of codes the
    ids beyond the codes keep their distance to the last code, so the fake class token is ``num_codes + 76``.

    Attributes:
        num_codes: Number of codes of the tokenizer; ids 0 .. num_codes - 1.
    """

    num_codes: int

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.num_codes + 1001

    @property
    def mask_id(self) -> int:
        """The id that replaces masked tokens in the token predictor's input."""
        return self.num_codes + 1000

    @property
    def class_id(self) -> int:
        """The id of the fake class token that precedes the token predictor's input."""
        return self.num_codes + 76


class TokenHead(nn.Module):
    """Scores the vocabulary: linear, GELU, LayerNorm, product with the *detached* token embeddings, plus a bias.

    Args:
        width: Channels of a token.
        vocabulary_size: Number V of ids.
    """

    def __init__(self, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.ln = nn.LayerNorm(width, eps=HEAD_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(1, 1, vocabulary_size))

    def forward(self, x: Tensor, embeddings: Tensor) -> Tensor:
        """Logits (B, N, V) of tokens (B, N, C), given the embedding table (V, C)."""
        x = self.ln(F.gelu(self.fc(x)))
        return F.linear(x, embeddings.detach()) + self.bias


def init_transformer(module: nn.Module) -> None:
    """Initialises one module as MAE does: Xavier-uniform linear layers, normal embeddings, zero biases.

    Args:
        module: Any module; this function is meant for ``nn.Module.apply`` and leaves other layers as they are.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=EMBEDDING_STD)


def init_patch_embedding(projection: nn.Conv2d) -> None:
    """Initialises a patch embedding as the linear layer it is, not as a convolution (MAE)."""
    nn.init.xavier_uniform_(projection.weight.data.flatten(1))
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)


def init_position(*embeddings: nn.Parameter) -> None:
    """Initialises position embeddings, cls and mask tokens with a truncated normal."""
    for embedding in embeddings:
        nn.init.trunc_normal_(embedding, std=EMBEDDING_STD)


def init_position_waves(grid: tuple[int, int], scale: float, *embeddings: Tensor) -> None:
    """Initialises position embeddings with waves along both axes, so that neighbouring positions start out similar.

    Short trainings gain by it: from independent random vectors a network first has to learn which tokens are
    neighbours. Not part of the published method.

    Args:
        grid: Rows and columns of tokens.
        scale: Root mean square of the waves.
        embeddings: (..., 1 + rows * columns, C), C a multiple of 4. All entries but the first (cls) are overwritten.

    Raises:
        ValueError: If C is not a multiple of 4.
    """
    rows, columns = grid
    width = embeddings[0].shape[-1]
    if width % 4:
        raise ValueError(f'sine and cosine of two axes need a width that is a multiple of 4, got {width}')
    longest = LONGEST_WAVELENGTH * max(grid)
    wavelengths = torch.logspace(math.log10(SHORTEST_WAVELENGTH), math.log10(longest), width // 4)  # in tokens
    phase_y = 2 * math.pi * torch.arange(rows)[:, None, None] / wavelengths  # (rows, 1, C / 4)
    phase_x = 2 * math.pi * torch.arange(columns)[None, :, None] / wavelengths  # (1, columns, C / 4)
    parts = [phase.expand(rows, columns, -1) for phase in (phase_y.sin(), phase_y.cos(), phase_x.sin(), phase_x.cos())]
    pattern = math.sqrt(2) * scale * torch.cat(parts, dim=-1).flatten(0, 1)  # (rows * columns, C)
    with torch.no_grad():
        for embedding in embeddings:
            embedding[..., 1:, :] = pattern
