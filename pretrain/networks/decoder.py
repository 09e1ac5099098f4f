"""ADDP's decoder apart from its blocks: the sequence it reads and the head that ends in the vocabulary.

Shapes: B images, L places, U unmasked places, C width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.networks.mask_schedule import true_places

HEAD_NORM_EPS = 1e-5


class TokenHead(nn.Module):
    """Scores the vocabulary: linear, GELU, LayerNorm, then the product with the *detached* token embeddings, plus a bias.

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


def decoder_sequence(
    features: Tensor,
    token_embeddings: Tensor,
    mask: Tensor,
    mask_token: Tensor,
    pos_unmasked: Tensor,
    pos_masked: Tensor,
    pos_token: Tensor,
) -> Tensor:
    """Builds the decoder's input: cls and all places, then the embeddings of the unmasked tokens in raster order.

    ``mask_token`` replaces the features of cls and of masked places; cls still has the position of an unmasked place.

    Args:
        features: (B, 1 + L, C), the encoder's output after ``decoder_embed``; cls first.
        token_embeddings: (B, L, C) of the true tokens; those at masked places are not read.
        mask: (B, L) bool, the same number of True places in each row.
        mask_token: (1, 1, C).
        pos_unmasked: (1, 1 + L, C), positions of unmasked places and of cls.
        pos_masked: (1, 1 + L, C), positions of masked places.
        pos_token: (1, 1 + L, C), positions of the appended tokens.

    Returns:
        (B, 1 + L + U, C).

    Raises:
        ValueError: If the rows of ``mask`` have different numbers of masked places.
    """
    masked = F.pad(mask, (1, 0), value=False)[..., None]  # (B, 1 + L, 1), False at cls
    hidden = F.pad(mask, (1, 0), value=True)[..., None]  # (B, 1 + L, 1), True at cls
    places = torch.where(hidden, mask_token, features) + torch.where(masked, pos_masked, pos_unmasked)
    unmasked = true_places(~mask)[..., None].expand(-1, -1, features.shape[-1])  # (B, U, C)
    tokens = (token_embeddings + pos_token[:, 1:]).gather(1, unmasked)
    return torch.cat((places, tokens), dim=1)
