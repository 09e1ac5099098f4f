"""RoIAlign in float32, whatever the precision of the feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class Float32RoIExtractor(SingleRoIExtractor):
    """mmdet's extractor of one level an RoI, with coordinates, sampling points and sums in float32.

    mmdet casts RoIs to the maps' precision. bfloat16 has 8 significant bits, so that at 1024 px coordinates move by up
    to 2 px, and RoIs change levels. detectron2's pyramid ends in a norm that leaves float32 under mixed precision; ours
    does on CUDA, where layer norm is computed in float32, but not on a CPU. Casting the maps here keeps them in reduced
    precision between forward and backward pass, where a float32 pyramid would take 85 MiB more an image at 1024 px.

    The arguments are those of ``SingleRoIExtractor``. ``roi_layer`` should have ``use_torchvision=True``, as detectron2
    pools by torchvision, too; through mmcv's interface the gradient of a level is allocated twice.
    """

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Pools each RoI from the level of its size.

        Args:
            feats: (B, C, H, W) maps, finest first.
            rois: (K, 5) float: image index, x1, y1, x2, y2 in image pixels.
            roi_scale_factor: Enlarges RoIs about their centres before pooling; None = not at all.

        Returns:
            (K, C, h, w) in the maps' precision.
        """
        with torch.autocast(feats[0].device.type, enabled=False):
            maps = tuple(feature.float() for feature in feats)
            return super().forward(maps, rois.float(), roi_scale_factor).to(feats[0].dtype)
