"""Training a VQGAN tokenizer: the straight-through pass and its losses.

The published code does not train a tokenizer (it uses a released one), so the recipe is VQGAN's: pixel and codebook
losses, optionally a perceptual and an adversarial term. How codes stay in use is in ``codebook.py``.

Shapes: B images, L tokens, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision.models.vgg import cfgs, make_layers

from addp_backbone.files.images import IMAGENET_MEAN, IMAGENET_STD
from pretrain.networks.tokenizer import VQGANTokenizer

_NORM_GROUPS = 8
_ADAPTIVE_WEIGHT_MAX = 1e4
_FIRST_LOSS_SCALE = 2.0**16
_LARGEST_LOSS_SCALE = 2.0**40
_HALF_RANGE = (2.0**4, 2.0**12)  # where the largest entry of a scaled gradient should lie in float16
_MAX_TRIALS = 8
_TAPS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
_CLASSIFIER = 'classifier.'


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
    """Encodes, quantises and decodes images; the encoder gets the decoder's gradients unchanged (straight-through).

    Source: van den Oord et al. 2017, section 3.2.

    Args:
        tokenizer: The trained tokenizer.
        images: (B, 3, H, W) in [0, 1].
        quantize: False decodes the continuous latents instead of the code vectors.
    """
    continuous = tokenizer.encode_continuous(images)
    tokens, quantized = tokenizer.quantize(continuous)
    latents = continuous + (quantized - continuous).detach() if quantize else continuous
    return TokenizerPass(tokenizer.decode(latents), tokens, continuous, quantized)


class TokenizerObjective(nn.Module):
    """The losses of tokenizer training, ready to be added up and differentiated in one backward pass.

    Args:
        pixel_weight: Weight of the mean absolute error.
        codebook_weight: Weight of the loss that pulls codes towards latents.
        commitment_weight: Weight of the loss that pulls latents towards codes (van den Oord et al.: 0.25).
        perceptual_weight: Weight of the VGG16 distance; 0 leaves it out.
            ``objective.perceptual.load_vgg16(state_dict)`` loads its weights.
        adversarial_weight: Factor of the adversarial term, times the adaptive weight; 0 leaves the discriminator out.
        adversarial_start_iters: First iteration (from 0) with the adversarial term and a discriminator that learns.
        discriminator: Arguments of :class:`PatchDiscriminator`.
        quantize_from_iters: First iteration (from 0) in which latents are quantised. Until then the autoencoder trains
            without a codebook, whose codes then start from meaningful latents; short trainings gain by it.
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
        """Computes all losses, weighted; tokenizer and discriminator both minimise their sum.

        Args:
            tokenizer: The trained tokenizer, in train mode.
            images: (B, 3, H, W) in [0, 1].
            iteration: Number of iterations done, for ``adversarial_start_iters`` and ``quantize_from_iters``.

        Returns:
            A dict of the scalars ``loss_pixel``, ``loss_codebook``, ``loss_commitment`` and, where switched on,
            ``loss_perceptual``, ``loss_adversarial`` and ``loss_discriminator``; and the pass they were computed from.
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
        if iteration < self.adversarial_start_iters:
            # Not computed, but each weight of the discriminator gets the gradient 0, as DDP and the optimizer expect.
            nothing = torch.stack([0.0 * parameter.sum() for parameter in discriminator.parameters()]).sum()
            return {'loss_adversarial': nothing.detach(), 'loss_discriminator': nothing}
        adversarial = generator_loss(discriminator, result.reconstruction)
        weight = adaptive_weight(appearance, adversarial, tokenizer.decoder.conv_out.weight)
        return {
            'loss_adversarial': self.adversarial_weight * weight * adversarial,
            'loss_discriminator': discriminator_loss(discriminator, images, result.reconstruction),
        }


class PerceptualDistance(nn.Module):
    """The mean squared difference of unit-length VGG16 features at five depths, summed over the depths.

    This is LPIPS without its learned channel weights. It is built without weights: call :meth:`load_vgg16` with those
    of torchvision's ``vgg16-397923af.pth``, which the user downloads from https://download.pytorch.org/models/. The
    network is frozen, and always in eval mode.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = make_layers(cfgs['D']).requires_grad_(False)
        self.loaded = False
        self.register_buffer('mean', torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # the taps are read after later layers have run

    def load_vgg16(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads torchvision's VGG16; its classifier is left out, as the distance reads features only.

        Raises:
            RuntimeError: If the state dict is not that of torchvision's ``vgg16``.
        """
        self.load_state_dict({name: value for name, value in state_dict.items() if not name.startswith(_CLASSIFIER)})
        self.loaded = True

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """The mean distance, a scalar, of images and others (B, 3, H, W) in [0, 1]; gradients flow into both.

        Raises:
            RuntimeError: If no weights were loaded.
        """
        if not self.loaded:
            raise RuntimeError(
                "the perceptual distance has no weights: pass those of torchvision's vgg16-397923af.pth to "
                'load_vgg16(), or train without the perceptual term (perceptual_weight=0)'
            )
        x = (torch.cat((images, others)) - self.mean) / self.std
        distance = x.new_zeros(())
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _TAPS:
                a, b = nn.functional.normalize(x.float(), dim=1).chunk(2)
                distance = distance + (a - b).square().sum(1).mean()
            if i == _TAPS[-1]:
                break
        return distance


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of an image as real or reconstructed (PatchGAN).

    GroupNorm replaces PatchGAN's BatchNorm, so that the scores of an image depend neither on the rest of its batch nor
    on the number of processes.

    Args:
        base_channels: Channels after the first layer; a multiple of 8.
        num_layers: Number of layers that halve the resolution; widths double up to eight times ``base_channels``.
    """

    def __init__(self, base_channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = base_channels
        for i in range(1, num_layers + 1):
            before, width = width, base_channels * min(2**i, 8)
            stride = 2 if i < num_layers else 1
            layers += [
                nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(_NORM_GROUPS, width),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, 1, h, w) of images (B, 3, H, W); positive = real."""
        return self.layers(images)


def discriminator_loss(discriminator: nn.Module, images: Tensor, reconstruction: Tensor) -> Tensor:
    """The hinge loss of the discriminator; only the discriminator gets gradients."""
    real = discriminator(images.detach()).float()
    fake = discriminator(reconstruction.detach()).float()
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(discriminator: nn.Module, reconstruction: Tensor) -> Tensor:
    """The adversarial loss of the tokenizer; the parameters of the discriminator get no gradients.

    So this loss and the discriminator's can be added and differentiated in one backward pass.
    """
    constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return -functional_call(discriminator, constants, (reconstruction,)).float().mean()


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_weight: Tensor) -> Tensor:
    """The weight that gives both losses' gradients the same norm at the decoder's last layer (VQGAN, section 3.1).

    Args:
        reconstruction_loss: Scalar loss with a graph.
        adversarial_loss: Scalar loss with a graph.
        last_weight: Weight of the decoder's last layer.

    Returns:
        A scalar without gradient, in [0, 1e4].
    """
    wanted, given = (_gradient_norm(loss, last_weight) for loss in (reconstruction_loss, adversarial_loss))
    return (wanted / (given + 1e-4)).clamp(0, _ADAPTIVE_WEIGHT_MAX).detach()


def _gradient_norm(loss: Tensor, weight: Tensor) -> Tensor:
    """The norm of a loss's gradient, with the loss scaled where the gradient may pass through float16.

    The gradient of a mean over a large batch is smaller than float16's least number at each pixel, and would be 0 or
    coarsely rounded on its way to the weight. So the loss is scaled until the weight's gradient, the sum over all
    pixels, is large and finite.
    """
    device = weight.device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    scale = _FIRST_LOSS_SCALE if half else 1.0
    for trial in range(_MAX_TRIALS):
        (gradient,) = torch.autograd.grad(loss * scale, weight, retain_graph=True)
        if not half:
            break
        largest = float(gradient.abs().max())
        if not math.isfinite(largest) and scale > 1 and trial < _MAX_TRIALS - 1:
            scale = max(1.0, scale / 2**6)
        elif largest < _HALF_RANGE[0] and scale < _LARGEST_LOSS_SCALE and trial == 0:
            factor = _HALF_RANGE[1] / max(largest, 2.0**-24)
            scale = min(_LARGEST_LOSS_SCALE, scale * 2 ** math.floor(math.log2(factor)))
        else:
            break
    return gradient.float().norm() / scale


def peak_signal_to_noise_ratio(reconstruction: Tensor, images: Tensor) -> Tensor:
    """PSNR in dB, averaged over the images (B, 3, H, W) in [0, 1]; the reconstruction is clamped to [0, 1]."""
    error = (reconstruction.detach().clamp(0, 1) - images).square().flatten(1).mean(1)
    return -10 * error.clamp(min=1e-10).log10().mean()
