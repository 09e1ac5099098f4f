"""A mask head whose targets are made for the whole batch at once, from boxes as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.modules.utils import _pair

from addp_backbone.detection.instance_masks import InstanceMasks


@MODELS.register_module()
class BatchTargetMaskHead(FCNMaskHead):
    """mmdet's mask head with detectron2's targets.

    Boxes go to the CPU and targets come back once a batch, whatever the number of images and objects; mmdet does both
    for every image. mmdet also clips the boxes to the image, which changes the targets of ground-truth boxes that leave
    it, and, on a CPU, the sampled boxes themselves. The arguments are those of ``FCNMaskHead``.

    Source: detectron2, ``modeling/roi_heads/mask_head.py``.
    """

    def get_targets(
        self,
        sampling_results: list[SamplingResult],
        batch_gt_instances: list[InstanceData],
        rcnn_train_cfg: ConfigDict,
    ) -> Tensor:
        """Makes the targets of all positive boxes of a batch.

        Args:
            sampling_results: Of each image; ``pos_priors`` and ``pos_assigned_gt_inds`` are read.
            batch_gt_instances: Of each image; ``masks`` are read.
            rcnn_train_cfg: ``mask_size`` is read, side or (height, width) of the targets in pixels.

        Returns:
            (K, height, width) float32 of 0 and 1, on the boxes' device.
        """
        size = _pair(rcnn_train_cfg['mask_size'])
        boxes = torch.cat([result.pos_priors for result in sampling_results])
        owners = torch.cat([result.pos_assigned_gt_inds for result in sampling_results])
        counts = [len(result.pos_priors) for result in sampling_results]
        masks = [instances.masks for instances in batch_gt_instances]
        return make_targets(masks, boxes, owners, counts, size).float()


def make_targets(
    masks: Sequence[InstanceMasks | BitmapMasks | PolygonMasks],
    boxes: Tensor,
    owners: Tensor,
    counts: Sequence[int],
    size: tuple[int, int],
) -> Tensor:
    """Makes the mask targets of a batch.

    Args:
        masks: Of each image.
        boxes: (K, 4) float x1, y1, x2, y2, image after image.
        owners: (K,) int64, which object of its image each box is of.
        counts: Number of boxes of each image.
        size: Height and width of the targets in pixels.

    Returns:
        (K, height, width) bool on the boxes' device.
    """
    if not len(boxes):
        return boxes.new_zeros((0, *size), dtype=torch.bool)
    device = boxes.device
    host_boxes, host_owners = boxes.float().cpu().numpy(), owners.cpu().numpy()
    if all(isinstance(m, InstanceMasks) for m in masks) and len({(m.height, m.width) for m in masks}) == 1:
        firsts = np.cumsum([0, *(len(m) for m in masks[:-1])])
        joined = InstanceMasks.cat(masks)
        assert isinstance(joined, InstanceMasks)
        return joined.targets(host_boxes, host_owners + np.repeat(firsts, counts), size, device)
    ends = np.cumsum(counts)[:-1]
    targets = [
        m.crop_and_resize(image_boxes, size, image_owners, device=device).to_ndarray()
        for m, image_boxes, image_owners in zip(
            masks, np.split(host_boxes, ends), np.split(host_owners, ends), strict=True
        )
        if len(image_boxes)
    ]
    return torch.from_numpy(np.concatenate(targets).astype(bool)).to(device)
