"""A perceptual distance from VGG16 features that the user supplies (LPIPS without its learned channel weights)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from addp_backbone.files.images import IMAGENET_MEAN, IMAGENET_STD

_TAPS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
_CLASSIFIER = 'classifier.'


class PerceptualDistance(nn.Module):
    """The mean squared difference of unit-length VGG16 features at five depths, summed over the depths.

    Made without weights: call :meth:`load_vgg16` with those of torchvision's ``vgg16-397923af.pth``, which the user
    downloads from https://download.pytorch.org/models/. The network is frozen, and always in eval mode.
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
