"""Training a VQGAN tokenizer: straight-through pass, losses, codebook usage and revival of dead codes.

The published code has no such part (it uses a released tokenizer), so the recipe is VQGAN's: pixel and codebook losses,
optionally a perceptual and an adversarial term. Shapes: B images, L places, C latent channels, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_reduce, broadcast
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.networks.tokenizer import VQGANTokenizer
from pretrain.training.adversarial import PatchDiscriminator, adaptive_weight, discriminator_loss, generator_loss
from pretrain.training.perceptual import PerceptualDistance


class TokenizerPass(NamedTuple):
    """A training pass through the tokenizer.

    Attributes:
        reconstruction: (B, 3, H, W) float32, not clamped.
        tokens: (B, L) int64.
        continuous: (B, C, g, g) float32, latents before quantisation.
        quantized: (B, C, g, g) float32, the code vectors of ``tokens``; gradients reach the codebook only.
    """

    reconstruction: Tensor
    tokens: Tensor
    continuous: Tensor
    quantized: Tensor


def reconstruct(tokenizer: VQGANTokenizer, images: Tensor, quantize: bool = True) -> TokenizerPass:
    """Encodes, quantises and decodes images (B, 3, H, W) in [0, 1]; the encoder gets the decoder's gradients unchanged.

    (Straight-through estimator: van den Oord et al. 2017, section 3.2.) Without ``quantize`` the decoder gets the
    continuous latents.
    """
    continuous = tokenizer.encode_continuous(images)
    tokens, quantized = tokenizer.quantize(continuous)
    latents = continuous + (quantized - continuous).detach() if quantize else continuous
    return TokenizerPass(tokenizer.decode(latents), tokens, continuous, quantized)


class TokenizerObjective(nn.Module):
    """The losses of tokenizer training, ready to be added up and differentiated in one backward pass.

    Args:
        pixel_weight: Of the mean absolute error.
        codebook_weight: Of the loss that pulls codes to latents.
        commitment_weight: Of the loss that pulls latents to codes (van den Oord et al.: 0.25).
        perceptual_weight: Of the VGG16 distance; 0 leaves it out. Its weights are loaded by
            ``objective.perceptual.load_vgg16(state_dict)``.
        adversarial_weight: Of the adversarial term, times the adaptive weight; 0 leaves the discriminator out.
        adversarial_start_iters: Iterations before the adversarial term (and the discriminator's learning) sets in.
        discriminator: Arguments of :class:`PatchDiscriminator`.
        quantize_from_iters: Iterations at the start in which latents are not quantised, so that the codebook begins
            among latents that mean something; short trainings gain by it.
    """

    def __init__(
        self,
        pixel_weight: float = 1.0,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        perceptual_weight: float = 0.0,
        adversarial_weight: float = 0.0,
        adversarial_start_iters: int = 0,
        discriminator: Mapping[str, Any] | None = None,
        quantize_from_iters: int = 0,
    ) -> None:
        super().__init__()
        self.pixel_weight = pixel_weight
        self.codebook_weight = codebook_weight
        self.commitment_weight = commitment_weight
        self.perceptual_weight = perceptual_weight
        self.adversarial_weight = adversarial_weight
        self.adversarial_start_iters = adversarial_start_iters
        self.quantize_from_iters = quantize_from_iters
        self.perceptual = PerceptualDistance() if perceptual_weight else None
        self.discriminator = PatchDiscriminator(**(discriminator or {})) if adversarial_weight else None

    def forward(
        self, tokenizer: VQGANTokenizer, images: Tensor, iteration: int = 0
    ) -> tuple[dict[str, Tensor], TokenizerPass]:
        """Computes all losses, weighted; their sum is to be minimised by tokenizer and discriminator alike.

        Args:
            tokenizer: In train mode.
            images: (B, 3, H, W) in [0, 1].
            iteration: Number of iterations done, for ``adversarial_start_iters`` and ``quantize_from_iters``.

        Returns:
            Scalars ``loss_pixel``, ``loss_codebook``, ``loss_commitment`` and, where switched on, ``loss_perceptual``,
            ``loss_adversarial`` and ``loss_discriminator``; and the pass they were computed from.
        """
        quantize = iteration >= self.quantize_from_iters
        result = reconstruct(tokenizer, images, quantize)
        # Multiplied by 0, not left out: a distributed wrapper wants a gradient for every parameter in every iteration.
        losses = {
            'loss_pixel': self.pixel_weight * F.l1_loss(result.reconstruction, images),
            'loss_codebook': quantize * self.codebook_weight * F.mse_loss(result.quantized, result.continuous.detach()),
            'loss_commitment': quantize
            * self.commitment_weight
            * F.mse_loss(result.continuous, result.quantized.detach()),
        }
        if self.perceptual is not None:
            losses['loss_perceptual'] = self.perceptual_weight * self.perceptual(result.reconstruction, images)
        if self.discriminator is not None:
            appearance = losses['loss_pixel'] + losses.get('loss_perceptual', 0.0)
            losses.update(self._adversarial(self.discriminator, tokenizer, images, result, appearance, iteration))
        return losses, result

    def _adversarial(
        self,
        discriminator: PatchDiscriminator,
        tokenizer: VQGANTokenizer,
        images: Tensor,
        result: TokenizerPass,
        appearance: Tensor,
        iteration: int,
    ) -> dict[str, Tensor]:
        factor = float(iteration >= self.adversarial_start_iters)
        adversarial = generator_loss(discriminator, result.reconstruction)
        weight = adaptive_weight(appearance, adversarial, tokenizer.decoder.conv_out.weight)
        return {
            'loss_adversarial': factor * self.adversarial_weight * weight * adversarial,
            'loss_discriminator': factor * discriminator_loss(discriminator, images, result.reconstruction),
        }


class CodebookUsage(nn.Module):
    """Keeps a running average of how often each code is used, over all processes, and revives codes that no one uses.

    It starts from equal use, so that a good codebook that is trained further is left alone at first.

    Args:
        num_codes: Number of codes K.
        decay: Of the running average, per update.
        dead_below: A code is dead when used less often than this share of the average use.
    """

    shares: Tensor

    def __init__(self, num_codes: int, decay: float = 0.95, dead_below: float = 0.1) -> None:
        super().__init__()
        self.decay = decay
        self.dead_below = dead_below
        self.register_buffer('shares', torch.full((num_codes,), 1 / num_codes))

    @property
    def dead(self) -> Tensor:
        """(K,) bool, True = hardly used."""
        return self.shares < self.dead_below / len(self.shares)

    @torch.no_grad()
    def update(self, tokens: Tensor) -> dict[str, Tensor]:
        """Counts tokens (B, L) and returns figures of this batch for the log.

        Returns:
            ``codebook_used``, the share of codes that occur, and ``perplexity``, the exponential of the entropy of
            their frequencies: between 1 (one code) and K (all equally often).
        """
        counts = torch.bincount(tokens.flatten(), minlength=len(self.shares)).float()
        all_reduce(counts)
        shares = counts / counts.sum()
        self.shares.mul_(self.decay).add_(shares, alpha=1 - self.decay)
        return {'codebook_used': (counts > 0).float().mean(), 'perplexity': torch.special.entr(shares).sum().exp()}

    @torch.no_grad()
    def revive(self, tokenizer: VQGANTokenizer, continuous: Tensor, generator: torch.Generator | None = None) -> int:
        """Moves dead codes to latents of this batch and lets them count as used on average again.

        To be called after the optimizer's step, as it writes to the codebook.

        Args:
            tokenizer: Its codebook is changed.
            continuous: (B, C, g, g), latents before quantisation.
            generator: Source of randomness, on the CPU; torch's global one if None. Rank 0's draw holds for all.

        Returns:
            Number of codes revived.
        """
        dead = self.dead
        fill_codes(tokenizer, continuous, dead, generator)
        self.shares[dead] = 1 / len(self.shares)
        return int(dead.sum())


@torch.no_grad()
def fill_codes(
    tokenizer: VQGANTokenizer, continuous: Tensor, which: Tensor, generator: torch.Generator | None = None
) -> None:
    """Overwrites codes with latents drawn from a batch; also the way to start a new codebook, with all codes.

    Args:
        tokenizer: Its codebook is changed.
        continuous: (B, C, g, g), latents before quantisation; drawn without repetition as far as they go round.
        which: (K,) bool, the codes to overwrite; the same on all processes.
        generator: Source of randomness, on the CPU; torch's global one if None. Rank 0's draw holds for all.
    """
    number = int(which.sum())
    if number == 0:
        return
    latents = continuous.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (BL, C)
    order = torch.randperm(len(latents), generator=generator)
    chosen = order.repeat(-(-number // len(order)))[:number].to(latents.device)
    codes = latents[chosen].contiguous()
    broadcast(codes)
    tokenizer.codebook[which] = codes.to(tokenizer.codebook.dtype)


def peak_signal_to_noise_ratio(reconstruction: Tensor, images: Tensor) -> Tensor:
    """PSNR in dB, a scalar: the mean over the images (B, 3, H, W) in [0, 1]; the reconstruction is clamped."""
    error = (reconstruction.detach().clamp(0, 1) - images).square().flatten(1).mean(1)
    return -10 * error.clamp(min=1e-10).log10().mean()
