"""mmdet's heads where detectron2's differ: the RPN's averages, the mask predictor's start, the mask targets' boxes."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

MASK_PREDICTOR_STD = 0.001


@MODELS.register_module()
class Detectron2RPNHead(RPNHead):
    """mmdet's RPN head; its losses are averaged over the anchors that are to be sampled, as detectron2's are.

    mmdet divides by the anchors sampled, and counts at least one positive anchor an image, so that an image without
    objects lowers both losses by 1 / 257. detectron2 divides by ``batch_size_per_image`` times the number of images,
    which the config calls ``train_cfg.rpn.sampler.num``. The arguments are those of ``RPNHead``.

    Source: detectron2, ``modeling/proposal_generator/rpn.py``.
    """

    def get_targets(self, anchor_list: list, *args: Any, **kwargs: Any) -> tuple:
        """Makes the targets as ``RPNHead`` does; the fifth entry, ``avg_factor``, is detectron2's."""
        targets = super().get_targets(anchor_list, *args, **kwargs)
        return (*targets[:4], self.train_cfg['sampler']['num'] * len(anchor_list), *targets[5:])


@MODELS.register_module()
class Detectron2MaskHead(FCNMaskHead):
    """mmdet's mask head; its last layer starts from normal(0, 0.001), as detectron2's does, instead of Kaiming's std.

    Targets are cut out of an object's mask by the sampled box as it is. mmdet clips the box to the image first, which
    stretches the target of an object's own box where that reaches beyond the image.

    The arguments are those of ``FCNMaskHead``. Source: detectron2, ``modeling/roi_heads/mask_head.py``.
    """

    def init_weights(self) -> None:
        """Initialises as ``FCNMaskHead`` does, then the predictor anew."""
        super().init_weights()
        nn.init.normal_(self.conv_logits.weight, std=MASK_PREDICTOR_STD)

    def get_targets(
        self, sampling_results: list[SamplingResult], batch_gt_instances: list[InstanceData], rcnn_train_cfg: Any
    ) -> Tensor:
        """Cuts the targets of all positive boxes.

        Args:
            sampling_results: Each image's samples: boxes (x1, y1, x2, y2 in pixels) and which object each is of.
            batch_gt_instances: Each image's objects with ``masks``.
            rcnn_train_cfg: ``mask_size``, the side of a target in pixels.

        Returns:
            (all positive boxes, mask_size, mask_size) float of 0 and 1, in the order of the samples.
        """
        size = (rcnn_train_cfg.mask_size,) * 2
        targets = []
        for samples, truth in zip(sampling_results, batch_gt_instances, strict=True):
            boxes = samples.pos_priors
            if not len(boxes):
                targets.append(boxes.new_zeros((0, *size)))
                continue
            owners = samples.pos_assigned_gt_inds.cpu().numpy()
            masks = truth.masks.crop_and_resize(boxes.cpu().numpy(), size, owners, device=boxes.device)
            targets.append(torch.from_numpy(masks.to_ndarray()).to(boxes))
        return torch.cat(targets)
