"""The token predictor: MAGE's transformer, which fills in masked tokens (released as ``mage-vit{b,l}-1600``).

Frozen while ADDP trains; :meth:`TokenPredictor.training_loss` trains one from scratch. Parameter names are those of the
released file. Shapes: B images, L tokens, C width, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone.layers.block import NORM_EPS, Block
from addp_backbone.networks.arch import Arch, get_arch
from pretrain.networks.common import (
    EMBEDDING_STD,
    TokenHead,
    Vocabulary,
    init_position,
    init_position_waves,
    init_transformer,
)
from pretrain.networks.losses import LABEL_SMOOTHING, masked_cross_entropy
from pretrain.networks.mask_schedule import true_indices


class TokenEmbedding(nn.Module):
    """Word plus position embedding, LayerNorm and dropout (BERT's, with BERT's parameter names).

    Args:
        vocabulary_size: Number of ids.
        length: Number of positions.
        width: Channels of a token.
        dropout: Dropout probability of the embeddings.
    """

    def __init__(self, vocabulary_size: int, length: int, width: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary_size, width)
        self.position_embeddings = nn.Embedding(length, width)
        self.LayerNorm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeds ids (B, length) as (B, length, width)."""
        return self.dropout(self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings.weight))


class TokenPredictor(nn.Module):
    """Predicts the masked tokens of an image from the others.

    Args:
        arch: Size of the encoder: a name or ``dict(width=, depth=, num_heads=)``. The decoder has the same width.
        decoder_depth: Number of decoder blocks.
        decoder_num_heads: Attention heads of the decoder.
        num_tokens: Number L of tokens of an image.
        num_codes: Number K of codes.
        dropout: Dropout probability in embedding and blocks, in train mode only.
        position_waves: Whether position embeddings are initialised with waves
            (:func:`pretrain.networks.common.init_position_waves`; needs a square grid) instead of random vectors, as
            published. Loading weights overwrites either.

    Raises:
        ValueError: If ``position_waves`` is set and the tokens do not form a square.
    """

    def __init__(
        self,
        arch: str | Mapping[str, int] | Arch = 'base',
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        num_tokens: int = 256,
        num_codes: int = 1024,
        dropout: float = 0.1,
        position_waves: bool = False,
    ) -> None:
        super().__init__()
        size = get_arch(arch)
        decoder_size = Arch(size.width, decoder_depth, decoder_num_heads)
        self.vocabulary = Vocabulary(num_codes)
        self.num_tokens = num_tokens
        self.token_emb = TokenEmbedding(self.vocabulary.size, 1 + num_tokens, size.width, dropout)
        self.blocks = nn.Sequential(*(Block(size.width, size.num_heads, dropout) for _ in range(size.depth)))
        self.norm = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.decoder_embed = nn.Linear(size.width, size.width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, 1 + num_tokens, size.width))
        self.decoder_blocks = nn.Sequential(
            *(Block(size.width, decoder_size.num_heads, dropout) for _ in range(decoder_size.depth))
        )
        self.decoder_norm = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.mlm_layer = TokenHead(size.width, self.vocabulary.size)
        self.apply(init_transformer)
        init_position(self.decoder_pos_embed_learned)
        if position_waves:
            side = math.isqrt(num_tokens)
            if side**2 != num_tokens:
                raise ValueError(f'position_waves needs a square grid of tokens, got {num_tokens} tokens')
            # As strong as the word embeddings they are added to.
            init_position_waves((side, side), EMBEDDING_STD, self.token_emb.position_embeddings.weight)
            init_position_waves((side, side), 1.0, self.decoder_pos_embed_learned)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Predicts the distribution of every token.

        Args:
            tokens: (B, L) int64 in [0, K); masked ones are not read.
            mask: (B, L) bool, True = to be predicted.

        Returns:
            (B, L, K) float32, rows summing to 1.
        """
        return self.predict_logits(tokens, mask).float().softmax(-1)

    def predict_logits(
        self, tokens: Tensor, mask: Tensor, dropped: Tensor | None = None, num_dropped: int | None = None
    ) -> Tensor:
        """Scores the codes for every token.

        Args:
            tokens: (B, L) int64 in [0, K); masked ones are not read.
            mask: (B, L) bool, True = to be predicted.
            dropped: (B, L) bool within ``mask``, equally many in each row: tokens left out of the encoder's sequence.
            num_dropped: How many they are, if it is known: then the CPU does not wait for ``dropped``. Not checked.

        Returns:
            (B, L, K).

        Raises:
            ValueError: If shapes do not fit the number of tokens.
        """
        if tokens.shape != mask.shape or tokens.shape[1] != self.num_tokens:
            raise ValueError(
                f'tokens and mask must both be (B, {self.num_tokens}), got {tuple(tokens.shape)} and '
                f'{tuple(mask.shape)}'
            )
        ids = tokens.masked_fill(mask, self.vocabulary.mask_id)
        ids = F.pad(ids, (1, 0), value=self.vocabulary.class_id)  # (B, 1 + L)
        x = self._encode(self.token_emb(ids), dropped, num_dropped)  # (B, 1 + L, C)
        hidden = F.pad(mask, (1, 0), value=False)[..., None]
        x = torch.where(hidden, x[:, :1], x)  # the encoder's cls output replaces masked tokens
        x = self.decoder_norm(self.decoder_blocks(x + self.decoder_pos_embed_learned))
        logits = self.mlm_layer(x[:, 1:], self.token_emb.word_embeddings.weight)  # (B, L, V)
        return logits[..., : self.vocabulary.num_codes]

    def training_loss(
        self,
        tokens: Tensor,
        mask: Tensor,
        dropped: Tensor,
        label_smoothing: float = LABEL_SMOOTHING,
        num_dropped: int | None = None,
    ) -> Tensor:
        """MAGE's objective: cross entropy with label smoothing over the codes, averaged over the masked tokens.

        Args:
            tokens: (B, L) int64 in [0, K), the true tokens.
            mask: (B, L) bool.
            dropped: (B, L) bool within ``mask`` (see :func:`pretrain.networks.mask_schedule.draw_predictor_masks`).
            label_smoothing: Label smoothing in [0, 1).
            num_dropped: See :meth:`predict_logits`.

        Returns:
            A scalar, float32.
        """
        logits = self.predict_logits(tokens, mask, dropped, num_dropped)
        return masked_cross_entropy(logits, tokens, mask, label_smoothing)

    def _encode(self, x: Tensor, dropped: Tensor | None, num_dropped: int | None) -> Tensor:
        """Runs the encoder and ``decoder_embed`` on (B, 1 + L, C); dropped tokens get the output of cls."""
        if dropped is None:
            return self.decoder_embed(self.norm(self.blocks(x)))
        num_kept = None if num_dropped is None else x.shape[1] - num_dropped
        kept = true_indices(~F.pad(dropped, (1, 0), value=False), num_kept)[..., None].expand(-1, -1, x.shape[-1])
        y = self.decoder_embed(self.norm(self.blocks(x.gather(1, kept))))  # (B, kept, C), cls first
        return y[:, :1].expand_as(x).scatter(1, kept, y)
