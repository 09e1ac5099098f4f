"""ADDP: the model that learns tokens from pixels, and the diffusion between both spaces that makes its training data.

A training step, in this file's order: images -> tokenizer -> token predictor -> mixed latents -> noisy images
(:meth:`ADDP.diffuse`) -> encoder -> decoder -> logits -> loss. Parameter names are those of the released checkpoints.

Shapes: B images, L = g * g tokens, U unmasked tokens, C width, K codes, V vocabulary (codes, reserved ids, mask id).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone.files.images import IMAGENET_MEAN, IMAGENET_STD
from addp_backbone.layers.block import NORM_EPS, Block, PatchEmbed
from addp_backbone.layers.transfer import to_device
from addp_backbone.networks.arch import Arch, get_arch
from pretrain.networks.common import (
    EMBEDDING_STD,
    TokenHead,
    Vocabulary,
    init_patch_embedding,
    init_position,
    init_position_waves,
    init_transformer,
)
from pretrain.networks.frozen import AUTO, freeze, frozen_forward, resolve_dtype
from pretrain.networks.losses import LABEL_SMOOTHING, masked_soft_cross_entropy
from pretrain.networks.mask_schedule import true_indices
from pretrain.networks.token_predictor import TokenPredictor
from pretrain.networks.tokenizer import VQGANTokenizer


class DiffusionSample(NamedTuple):
    """What the frozen networks make of a batch of images.

    Attributes:
        tokens: (B, L) int64, the images' true tokens.
        noisy_images: (B, 3, H, W) float32, x_t; about [0, 1], not clamped.
        target: (B, L, K) float32, the soft target q(z_{t-1} | z_t); rows sum to 1.
    """

    tokens: Tensor
    noisy_images: Tensor
    target: Tensor


class ADDP(nn.Module):
    """The trained encoder and decoder, with the frozen tokenizer and token predictor.

    The frozen networks need no gradients, stay in eval mode and stay out of :meth:`state_dict`. The constructor reads
    no file; :func:`pretrain.weights.load_published` or ``load_state_dict`` (of all or of one network) loads weights.

    Args:
        arch: Size of the encoder: a name or ``dict(width=, depth=, num_heads=)``. The decoder has the same width.
        decoder_depth: Number of decoder blocks.
        decoder_num_heads: Attention heads of the decoder.
        img_size: Side of the square images, in pixels.
        patch_size: Side of a patch, in pixels; must equal the tokenizer's.
        tokenizer: Arguments of :class:`VQGANTokenizer`; its defaults where left out.
        token_predictor: Arguments of :class:`TokenPredictor`, without the numbers of tokens and codes, which follow.
        dropout: Dropout probability of encoder and decoder in train mode.
        token_dropout: Probability that, in train mode, all tokens of a sample are hidden from the decoder, which then
            learns about the image from the encoder alone. 0 as published. A small decoder that trains for minutes reads
            the tokens only, and the encoder learns next to nothing (see ``tools/probe_addp.py``).
        predictor_dropout: Whether the token predictor's dropout is active in train mode. In the published trainer it
            is, because ``train()`` reaches every module; the method describes the predictor as fixed.
        frozen_dtype: Precision of the frozen networks ('fp32', 'bf16', 'fp16') regardless of autocast. None:
            float32 weights, under the surrounding autocast. 'auto': like None until :meth:`set_frozen_dtype` is called,
            which training on CUDA does with its first batch (:mod:`pretrain.training.frozen_precision`).
        position_waves: Whether position embeddings are initialised with waves
            (:func:`pretrain.networks.common.init_position_waves`) instead of random vectors, as published. Loading
            weights overwrites either.

    Raises:
        ValueError: If the sizes of encoder and tokenizer do not fit, or an option is out of range.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        arch: str | Mapping[str, int] | Arch = 'base',
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        img_size: int = 256,
        patch_size: int = 16,
        tokenizer: Mapping[str, Any] | None = None,
        token_predictor: Mapping[str, Any] | None = None,
        dropout: float = 0.1,
        token_dropout: float = 0.0,
        predictor_dropout: bool = False,
        frozen_dtype: str | torch.dtype | None = None,
        position_waves: bool = False,
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f'img_size must be a multiple of patch_size, got {img_size} and {patch_size}')
        if not 0 <= token_dropout <= 1:
            raise ValueError(f'token_dropout must be a probability, got {token_dropout}')
        size = get_arch(arch)
        self.img_size = img_size
        self.patch_size = patch_size
        self.grid = (img_size // patch_size, img_size // patch_size)
        self.num_tokens = self.grid[0] * self.grid[1]
        self.token_dropout = token_dropout
        self.predictor_dropout = predictor_dropout
        automatic = frozen_dtype == AUTO
        self._build_frozen(tokenizer or {}, token_predictor or {}, None if automatic else resolve_dtype(frozen_dtype))
        self.frozen_is_open = automatic
        self._diffusion: Callable[..., DiffusionSample] = _diffuse
        self._lengths_vary = False  # whether the decoder is compiled
        self.num_codes = self.tokenizer.num_codes
        self.vocabulary = Vocabulary(self.num_codes)
        self._build_encoder(size, dropout)
        self._build_decoder(Arch(size.width, decoder_depth, decoder_num_heads), dropout)
        if position_waves:
            init_position_waves(self.grid, 0.5, self.pos_embed)  # half as strong as the patch embeddings
            init_position_waves(self.grid, 1.0, self.decoder_pos_embed_learned, self.decoder_pos_mask_embed)
            # As strong as the token embeddings they are added to.
            init_position_waves(self.grid, EMBEDDING_STD, self.decoder_pos_token_embed)
        self.register_buffer('pixel_mean', torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer('pixel_std', torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def _build_frozen(
        self, tokenizer: Mapping[str, Any], token_predictor: Mapping[str, Any], dtype: torch.dtype | None
    ) -> None:
        self.tokenizer = VQGANTokenizer(**tokenizer)
        if self.tokenizer.patch_size != self.patch_size:
            raise ValueError(
                f'the tokenizer has one token for {self.tokenizer.patch_size} x {self.tokenizer.patch_size} '
                f'pixels (2**(levels - 1)), the encoder for patch_size={self.patch_size}: give the '
                f'tokenizer other channel_multipliers, or change patch_size'
            )
        self.token_predictor = TokenPredictor(
            **token_predictor, num_tokens=self.num_tokens, num_codes=self.tokenizer.num_codes
        )
        self.set_frozen_dtype(dtype)
        freeze(self, ('tokenizer', 'token_predictor'))
        self.train(self.training)

    def set_frozen_dtype(self, dtype: torch.dtype | None) -> None:
        """Gives the frozen networks a precision of their own; None leaves weights and autocast as they are."""
        self.frozen_dtype = dtype
        self.frozen_is_open = False
        if dtype is not None:
            self.tokenizer.set_precision(dtype)
            self.token_predictor.to(dtype)

    def _build_encoder(self, size: Arch, dropout: float) -> None:
        self.patch_embed = PatchEmbed(self.patch_size, size.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, size.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.num_tokens, size.width))
        self.tokenizer_norm = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(size.width, size.num_heads, dropout) for _ in range(size.depth)))
        self.norm = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.blocks.apply(init_transformer)
        init_patch_embedding(self.patch_embed.proj)
        init_position(self.cls_token, self.pos_embed)

    def _build_decoder(self, size: Arch, dropout: float) -> None:
        positions = 1, 1 + self.num_tokens, size.width
        self.decoder_embed = nn.Linear(size.width, size.width)
        self.token_emb = nn.Embedding(self.vocabulary.size, size.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, size.width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(positions))
        self.decoder_pos_mask_embed = nn.Parameter(torch.empty(positions))
        self.decoder_pos_token_embed = nn.Parameter(torch.empty(positions))
        self.decoder_blocks = nn.Sequential(*(Block(size.width, size.num_heads, dropout) for _ in range(size.depth)))
        self.decoder_norm = nn.LayerNorm(size.width, eps=NORM_EPS)
        self.mlm_layer = TokenHead(size.width, self.vocabulary.size)
        for module in (self.decoder_embed, self.token_emb, self.decoder_blocks, self.mlm_layer):
            module.apply(init_transformer)
        init_position(
            self.mask_token, self.decoder_pos_embed_learned, self.decoder_pos_mask_embed, self.decoder_pos_token_embed
        )

    def train(self, mode: bool = True) -> ADDP:
        """Sets train or eval mode; the frozen networks stay in eval mode (but see ``predictor_dropout``)."""
        super().train(mode)
        self.tokenizer.eval()
        self.token_predictor.train(mode and self.predictor_dropout)
        return self

    def forward(self, images: Tensor, mask: Tensor, noisier_mask: Tensor) -> Tensor:
        """The training loss of images (B, 3, H, W) in [0, 1], given the masks m_t and m_{t+1} (B, L)."""
        return self.masked_loss(self.diffuse(images, mask, noisier_mask), mask)

    def diffuse(self, images: Tensor, mask: Tensor, noisier_mask: Tensor) -> DiffusionSample:
        """Runs the frozen networks: what the encoder sees and what the decoder has to predict at timestep t.

        Args:
            images: (B, 3, H, W) in [0, 1].
            mask: m_t, (B, L) bool, True = unreliable, to be predicted.
            noisier_mask: m_{t+1}, (B, L) bool, from which the unreliable tokens are predicted; contains m_t.

        Returns:
            Tokens, noisy images and soft target, without gradients.
        """
        return self._diffusion(self, images, mask, noisier_mask)

    def compile_parts(self, backend: str) -> list[str]:
        """Lets torch.compile serve :meth:`diffuse`, as one graph, and the blocks of encoder and decoder.

        Parameters keep their names, and copies of the model (weight averaging) are right.

        Args:
            backend: Of torch.compile.

        Returns:
            The names of the parts.
        """
        self._diffusion = torch.compile(_diffuse, backend=backend, fullgraph=True)
        self.blocks.compile(backend=backend)
        self.decoder_blocks.compile(backend=backend)
        self._lengths_vary = True
        return ['diffuse', 'blocks', 'decoder_blocks']

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """The encoder's input (B, 1 + L, C), after ``tokenizer_norm``, of pixels (B, 3, H, W), clamped to [0, 1] here.

        Raises:
            ValueError: If the images are not ``img_size`` square.
        """
        if pixels.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(
                f'expected images of {self.img_size} x {self.img_size} pixels, got '
                f'{pixels.shape[-2]} x {pixels.shape[-1]}: resize them or set img_size'
            )
        pixels = (pixels.clamp(0, 1) - self.pixel_mean) / self.pixel_std
        patches = self.patch_embed(pixels).flatten(1, 2) + self.pos_embed[:, 1:]  # (B, L, C)
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(pixels), -1, -1)
        return self.tokenizer_norm(torch.cat((cls_token, patches), dim=1))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """The encoder's output (B, 1 + L, C), cls first, of pixels (B, 3, H, W)."""
        return self.norm(self.blocks(self.dropout(self.embed_pixels(pixels))))

    def score_vocabulary(self, encoded: Tensor, tokens: Tensor, mask: Tensor, num_masked: int | None = None) -> Tensor:
        """Runs the decoder.

        Args:
            encoded: (B, 1 + L, C), the encoder's output, cls first.
            tokens: (B, L) int64.
            mask: (B, L) bool.
            num_masked: Number of True entries in each row of the mask, if it is known: then the CPU does not wait for
                the mask. It is not checked. None counts.

        Returns:
            Logits (B, L, V) over the whole vocabulary.
        """
        num_unmasked = None if num_masked is None else self.num_tokens - num_masked
        features = self.decoder_embed(encoded)
        x = self._decoder_input(features, self.token_emb(tokens), mask, num_unmasked)  # (B, 1 + L + U, C)
        if self._lengths_vary:  # one graph for every number of masked tokens
            torch._dynamo.mark_dynamic(x, 1, min=1 + self.num_tokens, max=1 + 2 * self.num_tokens)
        x = self.decoder_norm(self.decoder_blocks(x))
        return self.mlm_layer(x[:, 1 : 1 + self.num_tokens], self.token_emb.weight)

    def _decoder_input(
        self, features: Tensor, token_embeddings: Tensor, mask: Tensor, num_unmasked: int | None
    ) -> Tensor:
        """Builds the decoder's sequence: cls, all patches, then the embeddings of the unmasked tokens in raster order.

        ``mask_token`` replaces the features of cls and of masked patches; cls still gets the position embedding of an
        unmasked one.

        Args:
            features: (B, 1 + L, C), the encoder's output after ``decoder_embed``, cls first.
            token_embeddings: (B, L, C); masked ones are not read.
            mask: (B, L) bool, equally many True entries in each row.
            num_unmasked: U, if it is known.

        Returns:
            (B, 1 + L + U, C).
        """
        masked = F.pad(mask, (1, 0), value=False)[..., None]  # (B, 1 + L, 1), False at cls
        hidden = F.pad(mask, (1, 0), value=True)[..., None]  # (B, 1 + L, 1), True at cls
        positions = torch.where(masked, self.decoder_pos_mask_embed, self.decoder_pos_embed_learned)
        patches = torch.where(hidden, self.mask_token, features) + positions
        unmasked = true_indices(~mask, num_unmasked)[..., None].expand(-1, -1, features.shape[-1])  # (B, U, C)
        tokens = (token_embeddings + self.decoder_pos_token_embed[:, 1:]).gather(1, unmasked)
        return torch.cat((patches, tokens), dim=1)

    def predict_logits(self, pixels: Tensor, tokens: Tensor, mask: Tensor, num_masked: int | None = None) -> Tensor:
        """Scores the codes for every token.

        Args:
            pixels: (B, 3, H, W); clamped to [0, 1] here.
            tokens: (B, L) int64; the values of masked tokens do not matter, but must be valid ids.
            mask: (B, L) bool, True = to be predicted; equally many in each row.
            num_masked: See :meth:`score_vocabulary`.

        Returns:
            (B, L, K).

        Raises:
            ValueError: If rows have different numbers of masked tokens, or the images have another size.
        """
        return self.score_vocabulary(self.encode_pixels(pixels), tokens, mask, num_masked)[..., : self.num_codes]

    def masked_loss(
        self,
        sample: DiffusionSample,
        mask: Tensor,
        label_smoothing: float = LABEL_SMOOTHING,
        num_masked: int | None = None,
    ) -> Tensor:
        """Cross entropy with the soft target, smoothed over the whole vocabulary, averaged over the masked tokens.

        Args:
            sample: As :meth:`diffuse` returns it.
            mask: m_t, (B, L) bool.
            label_smoothing: Label smoothing in [0, 1).
            num_masked: See :meth:`score_vocabulary`.

        Returns:
            A scalar, float32.
        """
        encoded = self.encode_pixels(sample.noisy_images)
        logits = self.score_vocabulary(encoded, self._drop_tokens(sample.tokens), mask, num_masked)
        return masked_soft_cross_entropy(logits, sample.target, mask, label_smoothing)

    def _drop_tokens(self, tokens: Tensor) -> Tensor:
        """Replaces all tokens (B, L) of some samples by the mask id, see ``token_dropout``."""
        if not self.training or self.token_dropout == 0:
            return tokens
        (dropped,) = to_device(tokens.device, torch.rand(len(tokens), 1) < self.token_dropout)
        return tokens.masked_fill(dropped, self.vocabulary.mask_id)


def _diffuse(model: ADDP, images: Tensor, mask: Tensor, noisier_mask: Tensor) -> DiffusionSample:
    """See :meth:`ADDP.diffuse`; a function, so that compiled it serves copies of the model too."""
    tokenizer, grid = model.tokenizer, model.grid
    with frozen_forward(images.device.type, model.frozen_dtype):
        tokens, latents = tokenizer.encode(images)
        # Both predictions as one batch: the same values, better use of the device.
        both = model.token_predictor(torch.cat((tokens, tokens)), torch.cat((noisier_mask, mask)))
        unreliable, target = both.chunk(2)  # q(z_t | z_{t+1}), q(z_{t-1} | z_t), each (B, L, K)
        soft = tokenizer.soft_latents(unreliable, grid)
        mixed = torch.where(mask.unflatten(1, grid)[:, None], soft, latents)
        return DiffusionSample(tokens, tokenizer.decode(mixed), target)
