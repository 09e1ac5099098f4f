"""The steps of an image pipeline, on PIL images: crop, flip, RandAugment, resize, pack.

Random steps draw from the global generators of torch, ``random`` and numpy, which ``SeedAugmentation`` (first in a
training pipeline) seeds for each sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.transforms import str_to_pil_interp
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from addp_backbone.files.images import PIXEL_MEAN

INTERPOLATIONS = {
    'nearest': InterpolationMode.NEAREST,
    'bilinear': InterpolationMode.BILINEAR,
    'bicubic': InterpolationMode.BICUBIC,
}


TRANSLATE_SHARE = 0.45  # of the image's side: RandAugment's largest shift (timm)


class ImageSample(BaseDataElement):
    """Metadata of an image: ``img_path`` and ``sample_idx`` (meta), ``gt_label`` ((1,) int64, if it has a label)."""


@TRANSFORMS.register_module()
class RandomResizedCropImage:
    """Crops a random rectangle and resizes it to a square.

    Args:
        size: Side of the result, in pixels.
        scale: Smallest and largest area of the rectangle, as a share of the area of the image.
        ratio: Smallest and largest aspect ratio (width / height) of the rectangle.
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
        prob: Probability of mirroring, in [0, 1].
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
class RandAugmentImage:
    """timm's RandAugment, with a posterize operation that today's Pillow accepts.

    Args:
        policy: Policy in timm's notation; 'rand-m9-mstd0.5-inc1' means two operations of magnitude 9 with standard
            deviation 0.5, each stronger with a larger magnitude.
        interpolation: 'bilinear' or 'bicubic', for rotation, shear and translation.
    """

    def __init__(self, policy: str = 'rand-m9-mstd0.5-inc1', interpolation: str = 'bicubic') -> None:
        self.policy = policy
        self.options = dict(
            img_mean=tuple(round(value) for value in PIXEL_MEAN), interpolation=str_to_pil_interp(interpolation)
        )
        self._augment = self._build(translate_px=1)  # refuses a wrong policy now
        self._side = 0

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replaces ``img`` (PIL)."""
        side = min(results['img'].size)
        if side != self._side:
            self._augment = self._build(translate_px=int(side * TRANSLATE_SHARE))
            self._side = side
        results['img'] = self._augment(results['img'])
        return results

    def _build(self, translate_px: int) -> RandAugment:
        augment = rand_augment_transform(self.policy, {**self.options, 'translate_const': translate_px})
        for operation in augment.ops:
            if operation.aug_fn is timm_posterize:
                operation.aug_fn = posterize
        return augment

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.policy!r})'


def posterize(image: Image.Image, bits_to_keep: int, **unused: Any) -> Image.Image:
    """Keeps the highest bits of every channel, like timm's operation of this name, but also accepts 0 bits.

    At full strength timm asks Pillow for 0 bits, which older versions turned into a black image and Pillow 13 refuses.

    Args:
        image: An 8-bit image.
        bits_to_keep: Number of bits, from 0 (a black image); 8 or more change nothing.
        unused: Options of geometric operations, which timm passes to every operation.
    """
    if bits_to_keep == 0:
        return Image.new(image.mode, image.size)
    return timm_posterize(image, bits_to_keep)


@TRANSFORMS.register_module()
class ResizeCenterCropImage:
    """Resizes the shorter side to ``size / crop_ratio`` and crops the centre (the usual test pipeline).

    Args:
        size: Side of the result, in pixels.
        crop_ratio: Share of the shorter side that is kept, in (0, 1].
        interpolation: 'nearest', 'bilinear' or 'bicubic' (antialiased).

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(self, size: int = 256, crop_ratio: float = 1.0, interpolation: str = 'bicubic') -> None:
        if not 0 < crop_ratio <= 1:
            raise ValueError(f'crop_ratio must lie in (0, 1], got {crop_ratio}')
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
    """Last step: makes ``inputs`` (3, H, W) uint8, which the model's preprocessor scales, and ``data_samples``."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Packs ``img`` and its metadata."""
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
