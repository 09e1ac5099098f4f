"""Which anchors an object trains: detectron2's rule, which differs from mmdet's below the upper threshold."""

from __future__ import annotations

import torch
from mmdet.models.task_modules.assigners import AssignResult, MaxIoUAssigner
from mmengine.registry import TASK_UTILS
from torch import Tensor


@TASK_UTILS.register_module()
class Detectron2Assigner(MaxIoUAssigner):
    """Assigns anchors to objects by IoU, with detectron2's low-quality matches.

    An anchor is positive if its best IoU reaches ``pos_iou_thr``, negative if it stays below ``neg_iou_thr``, and
    ignored in between. In addition the anchors that overlap an object most, ties included, are positive however small
    that IoU is. mmdet differs twice: it wants at least ``min_pos_iou`` of such an anchor, so that small objects go
    without one, and it hands the anchor over to that object even if the anchor overlaps another one more. Here every
    positive anchor belongs to the object that it overlaps most itself, of equal ones to the first.

    Source: detectron2, ``modeling/matcher.py``. One departure: an object that no anchor touches gets none; there,
    every anchor that touches no object would become positive.

    Args:
        pos_iou_thr: Anchors whose best IoU is at least this are positive; in (0, 1].
        neg_iou_thr: Anchors whose best IoU is below this are negative; in (0, ``pos_iou_thr``].
        ignore_iof_thr: Anchors of which more than this share lies in an ignored region are left out of training;
            -1 = no region is ignored, as in detectron2.

    Raises:
        ValueError: If the thresholds are out of range or out of order.
    """

    def __init__(self, pos_iou_thr: float, neg_iou_thr: float, ignore_iof_thr: float = -1) -> None:
        if not 0 < neg_iou_thr <= pos_iou_thr <= 1:
            raise ValueError(
                'wanted 0 < neg_iou_thr <= pos_iou_thr <= 1, got '
                f'neg_iou_thr={neg_iou_thr} and pos_iou_thr={pos_iou_thr}'
            )
        super().__init__(pos_iou_thr, neg_iou_thr, match_low_quality=False, ignore_iof_thr=ignore_iof_thr)

    def assign_wrt_overlaps(self, overlaps: Tensor, gt_labels: Tensor) -> AssignResult:
        """Assigns by the IoU of every object with every anchor.

        Args:
            overlaps: (K objects, N anchors) float IoU in [0, 1]; -1 in the columns of anchors that are left out.
            gt_labels: (K,) int64 classes.

        Returns:
            For each anchor ``gt_inds`` (0 negative, -1 ignored, k + 1 object k), ``max_overlaps``, ``labels``.
        """
        result = super().assign_wrt_overlaps(overlaps, gt_labels)
        if 0 in overlaps.shape:
            return result
        best_of_object = overlaps.max(dim=1, keepdim=True).values  # (K, 1)
        is_best = ((overlaps == best_of_object) & (overlaps > 0)).any(dim=0)  # (N,)
        owners = overlaps.max(dim=0).indices
        result.gt_inds = torch.where(is_best, owners + 1, result.gt_inds)
        result.labels = torch.where(is_best, gt_labels[owners], result.labels)
        return result
