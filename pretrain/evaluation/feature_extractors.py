"""Feature extractors for the distances between sets of images, beside torch-fidelity's own.

``tools/evaluate_generation.py --feature-extractor NAME`` selects a class that is registered here by name. Results are
labelled with the name, because values of different extractors cannot be compared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

RANDOM_CONVOLUTIONS = 'random-convolutions'
_SEED = 0
_WIDTHS = (16, 32, 64)
_NUM_CLASSES = 10
_LAYERS = {'fid': 'features', 'kid': 'features', 'prc': 'features', 'isc': 'logits'}


class RandomConvolutions(FeatureExtractorBase):
    """A small convolutional network with fixed random weights.

    It needs no file and detects that two sets differ, but says little about their quality.

    Args:
        name: Registered name.
        features_list: A selection of 'features' (64 values) and 'logits' (10 values).
        **_: torch-fidelity's options for other extractors; unused.
    """

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(_SEED)
        self.convolutions = nn.ParameterList()
        for before, after in zip((3, *_WIDTHS[:-1]), _WIDTHS, strict=True):
            self.convolutions.append(torch.randn(after, before, 3, 3, generator=generator) / (before * 9) ** 0.5)
        self.head = nn.Parameter(torch.randn(_NUM_CLASSES, _WIDTHS[-1], generator=generator))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Computes the selected features of images (B, 3, H, W) uint8, each (B, number of values) float32."""
        x = images.float() / 127.5 - 1
        for weight in self.convolutions:
            x = F.relu(F.conv2d(x, weight, stride=2, padding=1))
        features = x.mean((2, 3))
        both = {'features': features, 'logits': features @ self.head.t()}
        return tuple(both[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Returns the names of the features."""
        return tuple(sorted(set(_LAYERS.values())))

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Returns the name of the features that a metric ('fid', 'isc', 'kid' or 'prc') uses."""
        return _LAYERS[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """Returns False: the network is small enough to run uncompiled."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """Returns an input of the right shape and dtype."""
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)


if RANDOM_CONVOLUTIONS not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(RANDOM_CONVOLUTIONS, RandomConvolutions)
