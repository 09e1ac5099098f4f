"""Random initial weights of the transformers that are trained from scratch (MAE's choices)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.02
SHORTEST_WAVE = 4.0  # places; shorter ones would hardly tell neighbours from others
LONGEST_WAVE = 8.0  # times the grid's side


def init_transformer(module: nn.Module) -> None:
    """Initialises one module, for ``nn.Module.apply``: Xavier-uniform linear layers, normal embeddings, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=EMBEDDING_STD)


def init_position(*embeddings: nn.Parameter) -> None:
    """Initialises position embeddings and the like with a truncated normal."""
    for embedding in embeddings:
        nn.init.trunc_normal_(embedding, std=EMBEDDING_STD)


def init_position_waves(grid: tuple[int, int], scale: float, *embeddings: Tensor) -> None:
    """Starts position embeddings from waves of both axes, so that neighbours are alike before anything is learned.

    Short trainings gain by it: from independent random vectors a network has to learn first which places lie side by
    side.

    Args:
        grid: Rows and columns of places.
        scale: Root mean square of the waves.
        embeddings: (..., 1 + rows * columns, C) with a multiple of 4 as C; changed in place but for the first entry
            (cls).

    Raises:
        ValueError: If C is no multiple of 4.
    """
    rows, columns = grid
    width = embeddings[0].shape[-1]
    if width % 4:
        raise ValueError(f'waves of two axes, sine and cosine, need a width that is a multiple of 4, got {width}')
    waves = torch.logspace(
        math.log10(SHORTEST_WAVE), math.log10(LONGEST_WAVE * max(grid)), width // 4
    )  # wavelengths in places
    phase_y = 2 * math.pi * torch.arange(rows)[:, None, None] / waves  # (rows, 1, C / 4)
    phase_x = 2 * math.pi * torch.arange(columns)[None, :, None] / waves  # (1, columns, C / 4)
    parts = [phase.expand(rows, columns, -1) for phase in (phase_y.sin(), phase_y.cos(), phase_x.sin(), phase_x.cos())]
    pattern = math.sqrt(2) * scale * torch.cat(parts, dim=-1).flatten(0, 1)  # (L, C)
    with torch.no_grad():
        for embedding in embeddings:
            embedding[..., 1:, :] = pattern


def init_patch_embedding(projection: nn.Conv2d) -> None:
    """Initialises a patch embedding as the linear layer it is, not as a convolution."""
    nn.init.xavier_uniform_(projection.weight.data.flatten(1))
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
