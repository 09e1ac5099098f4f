"""Random initial weights of the transformers that are trained from scratch (MAE's choices)."""

from __future__ import annotations

from torch import nn

EMBEDDING_STD = 0.02


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


def init_patch_embedding(projection: nn.Conv2d) -> None:
    """Initialises a patch embedding as the linear layer it is, not as a convolution."""
    nn.init.xavier_uniform_(projection.weight.data.flatten(1))
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
