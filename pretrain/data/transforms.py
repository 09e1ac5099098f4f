"""The steps of an image pipeline, on PIL images: crop, flip, resize, pack.

Random steps draw from torch's global generator, which ``SeedAugmentation`` (first in a training pipeline) seeds for
each sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

INTERPOLATIONS = {
    'nearest': InterpolationMode.NEAREST,
    'bilinear': InterpolationMode.BILINEAR,
    'bicubic': InterpolationMode.BICUBIC,
}


class ImageSample(BaseDataElement):
    """What is known of an image besides its pixels: ``img_path`` and ``sample_idx`` (meta), ``gt_label`` ((1,) int64, if labelled)."""


@TRANSFORMS.register_module()
class RandomResizedCropImage:
    """Cuts out a random rectangle and resizes it to a square.

    Args:
        size: Side of the result, in pixels.
        scale: Smallest and largest area of the rectangle, as a share of the image's.
        ratio: Smallest and largest width over height of the rectangle.
        interpolation: 'nearest', 'bilinear' or 'bicubic' (antialiased).
    """

    def __init__(
        self,
        size: int = 256,
        scale: Sequence[float] = (0.2, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = 'bicubic',
    ) -> None:
        self.crop = RandomResizedCrop(size, tuple(scale), tuple(ratio), _interpolation(interpolation))

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replaces ``img``."""
        results['img'] = self.crop(results['img'])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.crop!r})'


@TRANSFORMS.register_module()
class RandomFlipImage:
    """Mirrors the image left to right.

    Args:
        prob: Probability.
    """

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replaces ``img``."""
        if torch.rand(()) < self.prob:
            results['img'] = TF.hflip(results['img'])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob})'


@TRANSFORMS.register_module()
class ResizeCenterCropImage:
    """Resizes the shorter side to ``size / crop_ratio`` and cuts the middle out (the usual test pipeline).

    Args:
        size: Side of the result, in pixels.
        crop_ratio: Share of the shorter side that is kept, in (0, 1].
        interpolation: As in :class:`RandomResizedCropImage`.
    """

    def __init__(self, size: int = 256, crop_ratio: float = 1.0, interpolation: str = 'bicubic') -> None:
        if not 0 < crop_ratio <= 1:
            raise ValueError(f'crop_ratio lies in (0, 1], got {crop_ratio}')
        self.size = size
        self.crop_ratio = crop_ratio
        self.interpolation = _interpolation(interpolation)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replaces ``img``."""
        resized = TF.resize(results['img'], [round(self.size / self.crop_ratio)], self.interpolation)
        results['img'] = TF.center_crop(resized, [self.size, self.size])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, crop_ratio={self.crop_ratio})'


@TRANSFORMS.register_module()
class PackImage:
    """Last step: ``inputs``, (3, H, W) uint8 (the model's preprocessor makes [0, 1] of it), and ``data_samples``."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Packs ``img`` and what is known of it."""
        sample = ImageSample(metainfo=dict(img_path=results['img_path'], sample_idx=int(results['sample_idx'])))
        if 'gt_label' in results:
            sample.set_field(torch.tensor([results['gt_label']]), 'gt_label')
        # A copy, as PIL's buffer is read-only.
        pixels = torch.from_numpy(np.array(results['img'], dtype=np.uint8)).permute(2, 0, 1).contiguous()
        return dict(inputs=pixels, data_samples=sample)

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


def _interpolation(name: str) -> InterpolationMode:
    if name not in INTERPOLATIONS:
        raise ValueError(f'unknown interpolation {name!r}: use one of {sorted(INTERPOLATIONS)}')
    return INTERPOLATIONS[name]
