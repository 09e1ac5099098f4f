"""Random sampling of boxes without leaving their device."""

from __future__ import annotations

import torch
from mmdet.models.task_modules.samplers import RandomSampler
from mmengine.registry import TASK_UTILS
from torch import Tensor


@TASK_UTILS.register_module()
class DeviceRandomSampler(RandomSampler):
    """mmdet's random sampler, which permutes on the device of the boxes.

    mmdet permutes all candidates on the CPU, 261,888 anchors an image at 1024 px, and copies what it takes of them to
    the GPU, which waits. The permutation here comes from the device's own generator, which ``SeedEachIteration`` seeds.
    On a CPU the draws are mmdet's. The arguments are those of ``RandomSampler``. Source: detectron2,
    ``modeling/sampling.py``.
    """

    def random_choice(self, gallery: Tensor, num: int) -> Tensor:
        """Chooses at random, without repetition.

        Args:
            gallery: (N,) int64, the candidates.
            num: How many to choose, at most N.

        Returns:
            (num,) int64 on the same device.

        Raises:
            ValueError: If there are fewer candidates than ``num``.
        """
        if len(gallery) < num:
            raise ValueError(f'wanted {num} samples of {len(gallery)} candidates')
        return gallery[torch.randperm(len(gallery), device=gallery.device)[:num]]
