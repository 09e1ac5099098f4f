"""mmdet's heads where detectron2's differ: the RPN's averages, the mask predictor's start, the mask targets' boxes."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.dense_heads import RPNHead
from mmengine.registry import MODELS
from torch import Tensor, nn

from addp_backbone.detection.mask_head import BatchTargetMaskHead

MASK_PREDICTOR_STD = 0.001


@MODELS.register_module()
class Detectron2RPNHead(RPNHead):
    """mmdet's RPN head; its losses are averaged over the anchors that are to be sampled, proposals are float32.

    mmdet divides by the anchors sampled, and counts at least one positive anchor an image, so that an image without
    objects lowers both losses by 1 / 257. detectron2 divides by ``batch_size_per_image`` times the number of images,
    which the config calls ``train_cfg.rpn.sampler.num``. The arguments are those of ``RPNHead``.

    Source: detectron2, ``modeling/proposal_generator/rpn.py``.
    """

    def get_targets(self, anchor_list: list, *args: Any, **kwargs: Any) -> tuple:
        """Makes the targets as ``RPNHead`` does; the fifth entry, ``avg_factor``, is detectron2's."""
        targets = super().get_targets(anchor_list, *args, **kwargs)
        return (*targets[:4], self.train_cfg['sampler']['num'] * len(anchor_list), *targets[5:])

    def predict_by_feat(self, cls_scores: list[Tensor], bbox_preds: list[Tensor], *args: Any, **kwargs: Any) -> list:
        """Makes proposals as ``RPNHead`` does, always in float32.

        mmdet makes anchors and boxes in the precision of the scores: under bfloat16 autocast a coordinate beyond 512 px
        is a multiple of 4 px. detectron2 decodes in float32.
        """
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            scores, deltas = ([level.float() for level in levels] for levels in (cls_scores, bbox_preds))
            return super().predict_by_feat(scores, deltas, *args, **kwargs)


@MODELS.register_module()
class Detectron2MaskHead(BatchTargetMaskHead):
    """mmdet's mask head with detectron2's targets and, for its last layer, detectron2's start: normal(0, 0.001).

    The arguments are those of ``FCNMaskHead``. Source: detectron2, ``modeling/roi_heads/mask_head.py``.
    """

    def init_weights(self) -> None:
        """Initialises as ``FCNMaskHead`` does, then the predictor anew."""
        super().init_weights()
        nn.init.normal_(self.conv_logits.weight, std=MASK_PREDICTOR_STD)
