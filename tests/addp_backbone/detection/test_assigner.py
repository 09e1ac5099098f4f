"""detectron2's assignment of anchors to objects, against its rule written as a loop."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmengine.structures import InstanceData
from torch import Tensor

from addp_backbone.detection.assigner import Detectron2Assigner

LABELS = torch.tensor([5, 6, 7])


def _assign(overlaps: list[list[float]] | Tensor) -> list[int]:
    overlaps = torch.as_tensor(overlaps)
    result = Detectron2Assigner(0.7, 0.3).assign_wrt_overlaps(overlaps, LABELS[: len(overlaps)])
    labels = [-1 if owner <= 0 else LABELS[owner - 1].item() for owner in result.gt_inds.tolist()]
    assert result.labels.tolist() == labels
    return result.gt_inds.tolist()


def _assign_by_loop(overlaps: Tensor) -> list[int]:
    """0 negative, -1 ignored, k + 1 object k."""
    owners = []
    for j in range(overlaps.shape[1]):
        column = overlaps[:, j].tolist()
        best = max(column)
        owner = column.index(best) + 1 if best >= 0.7 else (0 if best < 0.3 else -1)
        for k, iou in enumerate(column):
            if iou > 0 and iou == max(overlaps[k].tolist()):
                owner = column.index(best) + 1
        owners.append(owner)
    return owners


def test_thresholds_make_anchors_positive_negative_and_ignored():
    assert _assign([[0.7, 0.699, 0.3, 0.299, 0.9]]) == [1, -1, -1, 0, 1]


def test_an_objects_best_anchor_is_positive_however_little_it_overlaps():
    assert _assign([[0.01, 0.02, 0.0]]) == [0, 1, 0]


def test_equally_good_anchors_are_all_positive():
    assert _assign([[0.2, 0.2, 0.1]]) == [1, 1, 0]


def test_an_anchor_that_is_one_objects_best_keeps_its_own_best_object():
    overlaps = [[0.8, 0.9], [0.6, 0.1]]  # anchor 0 is object 1's best, but overlaps object 0 more
    assert _assign(overlaps) == [1, 1]
    theirs = MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.3).assign_wrt_overlaps(torch.tensor(overlaps), LABELS[:2])
    assert theirs.gt_inds.tolist() == [2, 1], 'what mmdet does'


def test_an_object_that_no_anchor_touches_gets_none():
    assert _assign([[0.0, 0.0], [0.5, 0.1]]) == [2, 0]


def test_random_overlaps_are_assigned_as_by_the_loop():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        overlaps = (torch.rand(3, 20, generator=generator) * 16).round() / 16  # ties are frequent
        assert _assign(overlaps) == _assign_by_loop(overlaps)


def test_boxes_are_assigned_by_their_iou_and_ignored_regions_leave_anchors_out():
    anchors = InstanceData(priors=torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 4, 4]]))
    objects = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 9]]), labels=LABELS[:1])
    crowd = InstanceData(bboxes=torch.tensor([[20.0, 20, 40, 40]]))
    assert Detectron2Assigner(0.7, 0.3).assign(anchors, objects, crowd).gt_inds.tolist() == [1, 0, 0]
    assert Detectron2Assigner(0.7, 0.3, ignore_iof_thr=0.5).assign(anchors, objects, crowd).gt_inds.tolist() == [
        1,
        -1,
        0,
    ]


def test_an_image_without_objects_has_negative_anchors_alone():
    assert _assign(torch.zeros(0, 4)) == [0, 0, 0, 0]


@pytest.mark.parametrize(('positive', 'negative'), [(0.3, 0.7), (1.1, 0.3), (0.7, 0.0)])
def test_thresholds_out_of_order_are_refused(positive, negative):
    with pytest.raises(ValueError, match='0 < neg_iou_thr <= pos_iou_thr <= 1'):
        Detectron2Assigner(positive, negative)
