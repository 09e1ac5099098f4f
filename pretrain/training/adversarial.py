"""The adversarial term of tokenizer training: PatchGAN discriminator, hinge losses, adaptive weight (VQGAN's recipe)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

_NORM_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of an image as real or reconstructed.

    GroupNorm stands where PatchGAN has BatchNorm, so that the scores of an image depend neither on the rest of its
    batch nor on the number of processes.

    Args:
        base_channels: Channels after the first layer; a multiple of 8.
        num_layers: Layers that halve the resolution; widths double up to eight times ``base_channels``.
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
    """The discriminator's hinge loss; gives gradients to the discriminator alone."""
    real = discriminator(images.detach()).float()
    fake = discriminator(reconstruction.detach()).float()
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(discriminator: nn.Module, reconstruction: Tensor) -> Tensor:
    """The tokenizer's adversarial loss; gives no gradients to the discriminator's parameters.

    So both losses can be added and differentiated in one backward pass.
    """
    constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return -functional_call(discriminator, constants, (reconstruction,)).float().mean()


def adaptive_weight(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_weight: Tensor, limit: float = 1e4
) -> Tensor:
    """The weight that gives both losses' gradients the same norm at the decoder's last layer (VQGAN, section 3.1).

    Args:
        reconstruction_loss: A scalar.
        adversarial_loss: A scalar.
        last_weight: The weight of the last layer.
        limit: Largest weight.

    Returns:
        A scalar without gradient, in [0, limit].
    """
    (wanted,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
    (given,) = torch.autograd.grad(adversarial_loss, last_weight, retain_graph=True)
    return (wanted.norm() / (given.norm() + 1e-4)).clamp(0, limit).detach()
