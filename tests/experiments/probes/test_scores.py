"""Areas, mIoU and pixel accuracy: those of mmseg."""

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric

from addp_backbone.files.mask_areas import VOID, count_areas
from experiments.probes.scores import class_iou, mean_iou, pixel_accuracy


def test_scores_of_several_images_are_those_of_mmseg():
    rng = np.random.default_rng(0)
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=tuple('abcde'))
    areas = []
    for size in ((9, 12), (7, 5), (20, 20)):
        labels = rng.choice([0, 1, 2, VOID], size, p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
        predicted = torch.from_numpy(rng.integers(0, 4, size))  # class 4 occurs nowhere, 3 in predictions alone
        areas.append(count_areas(predicted, labels, 5))
        truth = torch.from_numpy(labels).long()
        metric.results.append(metric.intersect_and_union(predicted, truth, 5, VOID))
    wanted = metric.compute_metrics(metric.results)
    total = np.sum(areas, axis=0)
    assert mean_iou(total) == pytest.approx(wanted['mIoU'], abs=0.006)  # mmseg rounds to 0.01
    assert pixel_accuracy(total) == pytest.approx(wanted['aAcc'], abs=0.006)
    assert np.isnan(class_iou(total)[4]) and class_iou(total)[3] == 0


def test_the_score_of_nothing_is_undefined():
    assert np.isnan(mean_iou(np.zeros((3, 4), np.int64)))
