"""A mask head whose targets are made for the whole batch at once, from boxes as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.modules.utils import _pair

from addp_backbone.detection.instance_masks import InstanceMasks
from addp_backbone.files.run_length import encode_region


@MODELS.register_module()
class BatchTargetMaskHead(FCNMaskHead):
    """mmdet's mask head with detectron2's targets.

    Boxes go to the CPU and targets come back once a batch, whatever the number of images and objects; mmdet does both
    for every image. mmdet also clips the boxes to the image, which changes the targets of ground-truth boxes that leave
    it, and, on a CPU, the sampled boxes themselves. The arguments are those of ``FCNMaskHead``.

    With ``encode_masks=True`` in the test config (``test_cfg.rcnn``) predicted masks are run-length codes, of which one
    at a time is pixels: mmdet's (N, H, W) bool take 2.4 GB for 100 objects in 24 megapixels. The masks are the same.

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

    def _predict_by_feat_single(
        self,
        mask_preds: Tensor,
        bboxes: Tensor,
        labels: Tensor,
        img_meta: dict[str, Any],
        rcnn_test_cfg: ConfigDict,
        rescale: bool = False,
        activate_map: bool = False,
    ) -> Tensor | list[dict[str, Any]]:
        """The masks of one image as mmdet's base class makes them, or their codes; scales ``bboxes`` in place."""
        if not rcnn_test_cfg.get('encode_masks', False) or not rescale:
            return super()._predict_by_feat_single(
                mask_preds, bboxes, labels, img_meta, rcnn_test_cfg, rescale, activate_map
            )
        bboxes /= bboxes.new_tensor(img_meta['scale_factor']).repeat((1, 2))
        probs = torch.as_tensor(mask_preds).to(bboxes) if activate_map else mask_preds.sigmoid()
        if not self.class_agnostic:
            probs = probs[range(len(probs)), labels][:, None]
        return encode_pasted(probs, bboxes, img_meta['ori_shape'][:2], rcnn_test_cfg.mask_thr_binary)


def encode_pasted(probs: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> list[dict[str, Any]]:
    """Pastes masks into an image one after the other, and encodes each.

    Args:
        probs: (N, 1, h, w) in [0, 1], each over its box.
        boxes: (N, 4) x1, y1, x2, y2 in the image.
        size: Height and width of the image.
        threshold: Pixels of at least this probability are in the mask.

    Returns:
        N run-length codes.
    """
    codes = []
    for mask, box in zip(probs, boxes, strict=True):
        pasted, (rows, columns) = _do_paste_mask(mask[None], box[None], *size, skip_empty=True)
        codes.append(encode_region((pasted[0] >= threshold).cpu().numpy(), int(columns.start), int(rows.start), size))
    return codes


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
