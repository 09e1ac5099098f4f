"""The three networks as mmengine models: what a config trains.

``ADDPPretraining``, ``TokenizerTraining`` and ``TokenPredictorTraining`` take images (uint8 or [0, 255]) from the data
loader and return losses and statistics for the log. A config needs
``custom_imports=dict(imports=['pretrain.training'])``, which registers all that pre-training configs name. Random draws
(masks, dropout, revived codes) come from torch's global generator on the CPU, which the hook ``SeedEachIteration``
makes a function of (seed, rank, iteration).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor

from addp_backbone.checkpoint.storage import CheckpointError, read_checkpoint
from addp_backbone.layers.transfer import to_device
from pretrain.data import batches, image_folder, transforms  # noqa: F401  (registers them)
from pretrain.data.figures import grey_out
from pretrain.networks.addp import ADDP
from pretrain.networks.frozen import evaluating, freeze
from pretrain.networks.mask_schedule import (
    count_true,
    draw_masks,
    draw_predictor_masks,
    masks_at_ratio,
    masks_from_noise,
    num_masked,
    true_indices,
)
from pretrain.networks.token_predictor import TokenPredictor
from pretrain.networks.tokenizer import VQGANTokenizer
from pretrain.training import epoch_loop, hooks, optimizers  # noqa: F401  (registers them)
from pretrain.training.codebook import CodebookUsage, fill_codes
from pretrain.training.frozen_precision import has_half_precision, settle_frozen_dtype
from pretrain.training.tokenizer_objective import TokenizerObjective, peak_signal_to_noise_ratio
from pretrain.weights.loading import load_network

# Pixels 0..255 to [0, 1].
PREPROCESSOR = dict(type='ImageBatchPreprocessor', mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0])
# Mask ratios of the rows of a figure, in turn.
FIGURE_RATIOS = (0.55, 0.7, 0.85, 1.0)


class TrainingModel(BaseModel):
    """Base class of the three.

    Args:
        init_cfg: Sources of the weights by name of the network (see :mod:`pretrain.weights.loading`).
        data_preprocessor: Config of a mmengine data preprocessor; None scales pixels in [0, 255] to [0, 1].
    """

    def __init__(self, init_cfg: Mapping[str, str | None] | None, data_preprocessor: Mapping[str, Any] | None) -> None:
        super().__init__(dict(data_preprocessor or PREPROCESSOR))
        self.sources = dict(init_cfg or {})

    def forward(self, inputs: Tensor, data_samples: list[Any] | None = None, mode: str = 'loss') -> dict[str, Tensor]:
        """Returns losses (names with 'loss') and statistics for the log.

        Args:
            inputs: (B, 3, H, W) in [0, 1].
            data_samples: Unused; part of mmengine's interface.
            mode: Must be 'loss'.

        Raises:
            NotImplementedError: If ``mode`` is another one.
        """
        if mode != 'loss':
            raise NotImplementedError(
                f'{type(self).__name__} is for training (mode="loss"), got mode={mode!r}: there is nothing to '
                'evaluate; look at the loss and the figures in the work dir'
            )
        return self.compute_losses(inputs)

    def compute_losses(self, images: Tensor) -> dict[str, Tensor]:
        """Losses and statistics of images (B, 3, H, W) in [0, 1]."""
        raise NotImplementedError

    def draw_columns(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The columns of a figure that shows whether training works: title -> images (N, 3, H, W) in [0, 1]."""
        raise NotImplementedError


@MODELS.register_module()
class ADDPPretraining(TrainingModel):
    """ADDP's training step: masks, frozen networks, loss.

    Args:
        network: Arguments of :class:`pretrain.ADDP`.
        init_cfg: Sources of ``tokenizer`` and ``token_predictor`` (required), and of ``addp`` (random weights if left
            out).
        data_preprocessor: See :class:`TrainingModel`.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        init_cfg: Mapping[str, str | None] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg, data_preprocessor)
        self.addp = ADDP(**network)
        self.addp.tokenizer.lay_out()

    def init_weights(self) -> None:
        """Loads the frozen networks, which are in no checkpoint of this model; also before a resume."""
        report = load_network(self.addp, 'addp', self.sources['addp']) if self.sources.get('addp') is not None else None
        for name in ('tokenizer', 'token_predictor'):
            came_along = report is not None and name not in report.absent and self.sources.get(name) is None
            if not came_along:
                load_network(self.addp.get_submodule(name), name, self.sources.get(name))

    def compile_parts(self, backend: str) -> list[str]:
        """See :meth:`pretrain.networks.addp.ADDP.compile_parts`."""
        return [f'addp.{name}' for name in self.addp.compile_parts(backend)]

    def draw_masks(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Draws m_t and m_{t+1}, each (B, L) bool on the CPU: one pair of ratios for this batch of this rank."""
        return draw_masks(batch_size, self.addp.num_tokens)

    def compute_losses(self, images: Tensor) -> dict[str, Tensor]:
        """``loss``, the share of masked tokens, and the mean entropy of their targets, a lower bound of the loss."""
        if self.addp.frozen_is_open and has_half_precision(images.device):
            settle_frozen_dtype(self.addp, images)
        masks = self.draw_masks(len(images))
        count = count_true(masks[0])  # asked here, on the CPU: nothing waits for the device
        mask, noisier_mask = to_device(images.device, *masks)
        sample = self.addp.diffuse(images, mask, noisier_mask)
        entropies = torch.special.entr(sample.target.float()).sum(-1)  # (B, L)
        return dict(
            loss=self.addp.masked_loss(sample, mask, num_masked=count),
            mask_ratio=mask.float().mean(),
            target_entropy=entropies.gather(1, true_indices(mask, count)).mean(),
        )

    @torch.no_grad()
    def draw_columns(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Input, reconstruction, mask, noisy image x_t, decoded most likely codes; mask ratios grow with the rows."""
        rows = [
            self._draw_row(image[None], FIGURE_RATIOS[i % len(FIGURE_RATIOS)], generator)
            for i, image in enumerate(images)
        ]
        return {title: torch.cat([row[title] for row in rows]) for title in rows[0]}

    def _draw_row(self, image: Tensor, ratio: float, generator: torch.Generator) -> dict[str, Tensor]:
        addp = self.addp
        mask, noisier_mask = (mask.to(image.device) for mask in masks_at_ratio(ratio, 1, addp.num_tokens, generator))
        with evaluating(self):
            sample = addp.diffuse(image, mask, noisier_mask)
            predicted = addp.predict_logits(sample.noisy_images, sample.tokens, mask).argmax(-1)
            decode = addp.tokenizer.decode
            return {
                'input': image,
                'reconstruction': decode(addp.tokenizer.lookup(sample.tokens, addp.grid)),
                f'mask ({FIGURE_RATIOS[0]:g} .. {FIGURE_RATIOS[-1]:g})': grey_out(image, mask, addp.grid),
                'noisy image': sample.noisy_images,
                'most likely': decode(addp.tokenizer.lookup(torch.where(mask, predicted, sample.tokens), addp.grid)),
            }


@MODELS.register_module()
class TokenizerTraining(TrainingModel):
    """VQGAN training; tokenizer and discriminator share an optimizer, as each loss reaches only the weights it trains.

    Args:
        tokenizer: Arguments of :class:`pretrain.VQGANTokenizer`.
        objective: Arguments of :class:`pretrain.training.tokenizer_objective.TokenizerObjective`.
        init_cfg: Sources of ``tokenizer`` (random weights if left out) and ``vgg16`` (torchvision's file; required with
            the perceptual term).
        data_preprocessor: See :class:`TrainingModel`.
    """

    num_iters: Tensor

    def __init__(
        self,
        tokenizer: Mapping[str, Any],
        objective: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, str | None] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg, data_preprocessor)
        self.tokenizer = VQGANTokenizer(**tokenizer)
        self.objective = TokenizerObjective(**(objective or {}))
        self.usage = CodebookUsage(self.tokenizer.num_codes)
        # Counted here and stored with the weights: the adversarial term starts at an iteration, also after a resume.
        self.register_buffer('num_iters', torch.zeros((), dtype=torch.long))
        self._known_iters: int | None = None  # the same number on the CPU, which need not wait for it
        self.register_load_state_dict_pre_hook(_forget_iters)
        self.latents: Tensor | None = None  # of the last batch, before quantisation
        if self.objective.perceptual is not None:
            freeze(self.objective, ('perceptual',))

    def init_weights(self) -> None:
        """Loads what ``init_cfg`` names.

        Raises:
            CheckpointError: If the perceptual term has no weights, or a file does not fit.
        """
        if self.sources.get('tokenizer') is not None:
            load_network(self.tokenizer, 'tokenizer', self.sources['tokenizer'])
        if self.objective.perceptual is None:
            return
        if self.sources.get('vgg16') is None:
            raise CheckpointError(
                'the perceptual term needs the weights of VGG16: download '
                'https://download.pytorch.org/models/vgg16-397923af.pth and set model.init_cfg.vgg16 to it, or set '
                'model.objective.perceptual_weight=0'
            )
        self.objective.perceptual.load_vgg16(read_checkpoint(str(self.sources['vgg16'])))

    def compute_losses(self, images: Tensor) -> dict[str, Tensor]:
        """The losses of the objective, PSNR (dB), share of codes in use and perplexity."""
        iteration = int(self.num_iters) if self._known_iters is None else self._known_iters
        if iteration == self.objective.quantize_from_iters and self.sources.get('tokenizer') is None:
            self._start_codebook(images)
        losses, result = self.objective(self.tokenizer, images, iteration)
        self.num_iters += 1
        self._known_iters = iteration + 1
        statistics = dict(psnr=peak_signal_to_noise_ratio(result.reconstruction, images))
        if iteration >= self.objective.quantize_from_iters:
            self.latents = result.continuous.detach()
            statistics.update(self.usage.update(result.tokens))
        return {**losses, **statistics}

    @torch.no_grad()
    def _start_codebook(self, images: Tensor) -> None:
        """Initialises the codes with latents; far from the latents only one or two codes would ever be used."""
        with evaluating(self):
            all_codes = torch.ones(self.tokenizer.num_codes, dtype=torch.bool, device=images.device)
            fill_codes(self.tokenizer, self.tokenizer.encode_continuous(images), all_codes)

    def revive_codes(self) -> int:
        """Moves dead codes to latents of the last batch, after the optimizer's step; returns their number."""
        return 0 if self.latents is None else self.usage.revive(self.tokenizer, self.latents)

    @torch.no_grad()
    def draw_columns(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Input and reconstruction."""
        with evaluating(self):
            return {'input': images, 'reconstruction': self.tokenizer.decode(self.tokenizer.encode(images).latents)}


def _forget_iters(model: TokenizerTraining, *_: object) -> None:
    """Before weights are loaded: they hold another number of iterations."""
    model._known_iters = None


@MODELS.register_module()
class TokenPredictorTraining(TrainingModel):
    """MAGE's objective on the tokens of a frozen tokenizer.

    Args:
        token_predictor: Arguments of :class:`pretrain.TokenPredictor`, without the numbers of tokens and codes, which
            follow.
        tokenizer: Arguments of :class:`pretrain.VQGANTokenizer`.
        img_size: Side of the square images, in pixels.
        init_cfg: Sources of ``tokenizer`` (required) and ``token_predictor`` (random weights if left out).
        data_preprocessor: See :class:`TrainingModel`.
    """

    def __init__(
        self,
        token_predictor: Mapping[str, Any],
        tokenizer: Mapping[str, Any] | None = None,
        img_size: int = 256,
        init_cfg: Mapping[str, str | None] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg, data_preprocessor)
        self.tokenizer = VQGANTokenizer(**(tokenizer or {}))
        if img_size % self.tokenizer.patch_size:
            raise ValueError(
                f"img_size must be a multiple of the tokenizer's patch size {self.tokenizer.patch_size}, got {img_size}"
            )
        self.grid = (img_size // self.tokenizer.patch_size,) * 2
        self.token_predictor = TokenPredictor(
            **token_predictor, num_tokens=self.grid[0] * self.grid[1], num_codes=self.tokenizer.num_codes
        )
        freeze(self, ('tokenizer',))
        self.tokenizer.lay_out()

    def train(self, mode: bool = True) -> TokenPredictorTraining:
        """Sets train or eval mode; the tokenizer stays in eval mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def init_weights(self) -> None:
        """Loads the frozen tokenizer, which is in no checkpoint of this model; also before a resume."""
        load_network(self.tokenizer, 'tokenizer', self.sources.get('tokenizer'))
        if self.sources.get('token_predictor') is not None:
            load_network(self.token_predictor, 'token_predictor', self.sources['token_predictor'])

    def compile_parts(self, backend: str) -> list[str]:
        """Compiles the frozen tokenizer's encoder in place; the predictor's sequences change their length."""
        self.tokenizer.encoder.compile(backend=backend)
        return ['tokenizer.encoder']

    def draw_masks(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Draws masked and dropped tokens, each (B, L) bool on the CPU: one ratio for this batch of this rank."""
        return draw_predictor_masks(batch_size, self.token_predictor.num_tokens)

    def compute_losses(self, images: Tensor) -> dict[str, Tensor]:
        """``loss`` and the share of masked tokens."""
        masks = self.draw_masks(len(images))
        num_dropped = count_true(masks[1])  # asked here, on the CPU: nothing waits for the device
        mask, dropped = to_device(images.device, *masks)
        with torch.no_grad():
            tokens = self.tokenizer.encode(images).tokens
        loss = self.token_predictor.training_loss(tokens, mask, dropped, num_dropped=num_dropped)
        return dict(loss=loss, mask_ratio=mask.float().mean())

    @torch.no_grad()
    def draw_columns(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Input, reconstruction, masked input, decoded most likely codes, decoded expectation (ADDP's noisy image)."""
        num_tokens = self.token_predictor.num_tokens
        noise = torch.rand(len(images), num_tokens, generator=generator)
        counts = [num_masked(FIGURE_RATIOS[i % len(FIGURE_RATIOS)], num_tokens) for i in range(len(images))]
        masks = [masks_from_noise(row[None], count)[0] for row, count in zip(noise, counts, strict=True)]
        mask = torch.cat(masks).to(images.device)
        with evaluating(self):
            tokenizer = self.tokenizer
            tokens, latents = tokenizer.encode(images)
            probs = self.token_predictor(tokens, mask)
            soft = torch.where(mask.unflatten(1, self.grid)[:, None], tokenizer.soft_latents(probs, self.grid), latents)
            return {
                'input': images,
                'reconstruction': tokenizer.decode(latents),
                f'mask ({FIGURE_RATIOS[0]:g} .. {FIGURE_RATIOS[-1]:g})': grey_out(images, mask, self.grid),
                'most likely': tokenizer.decode(
                    tokenizer.lookup(torch.where(mask, probs.argmax(-1), tokens), self.grid)
                ),
                'expected': tokenizer.decode(soft),
            }
