"""Check 7: box suppression, RoIAlign and mask targets, device against plain loops and the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from addp_backbone.detection.instance_masks import Cutout, InstanceMasks
from addp_backbone.detection.mask_head import make_targets
from tools.gpu.measuring import relative_error
from tools.gpu.report import Report

IOU_THRESHOLD = 0.7
SETS_EQUAL, FORWARD_TOLERANCE, BACKWARD_TOLERANCE, PIXELS_DIFFERENT = 0.999, 1e-5, 1e-4, 1e-4
SIDE_PX = 256


def boxes(device: torch.device, report: Report) -> None:
    """Check 7."""
    _suppression(device, report)
    _pooling(device, report)
    _mask_targets(device, report)
    report.figure = f'{report.values["sets of boxes kept alike"]:.1%} of sets alike'


def _suppression(device: torch.device, report: Report) -> None:
    """The nms of mmcv on the device against a plain loop, on random sets of boxes."""
    from mmcv.ops import nms

    rng = np.random.default_rng(0)
    count = 1000 if device.type == 'cuda' else 25
    equal = 0
    for _ in range(count):
        candidates, scores = random_boxes(rng, 60), rng.permutation(60).astype(np.float32) / 60
        tensors = (torch.from_numpy(x).to(device) for x in (candidates, scores))
        kept = nms(*tensors, iou_threshold=IOU_THRESHOLD)[1].cpu().tolist()
        equal += kept == suppress_by_loop(candidates, scores)
    report.at_least('sets of boxes kept alike', equal / count, SETS_EQUAL)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) float32 x1, y1, x2, y2 in an image of ``SIDE_PX``, of which many overlap."""
    centres = rng.uniform(60, SIDE_PX - 60, (count, 2))
    halves = rng.uniform(10, 50, (count, 2))
    return np.concatenate((centres - halves, centres + halves), axis=1).astype(np.float32)


def suppress_by_loop(candidates: np.ndarray, scores: np.ndarray) -> list[int]:
    """Greedy non-maximum suppression as it is defined, in float64."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind='stable').tolist():
        if all(_iou(candidates[i].astype(float), candidates[j].astype(float)) <= IOU_THRESHOLD for j in kept):
            kept.append(i)
    return kept


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]))
    inside = sides.prod()
    return float(inside / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inside))


def _pooling(device: torch.device, report: Report) -> None:
    """RoIAlign as the detector uses it, forward and backward, against the CPU in float64."""
    from torchvision.ops import roi_align

    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 16, 64, 64, generator=generator)
    corners = torch.from_numpy(random_boxes(np.random.default_rng(1), 64))
    rois = torch.cat((torch.arange(64)[:, None] % 2, corners), dim=1)
    results = []
    for where, dtype in ((torch.device('cpu'), torch.float64), (device, torch.float32)):
        x = maps.to(where, dtype).requires_grad_()
        pooled = roi_align(x, rois.to(where, dtype), (7, 7), 0.25, 0, True)
        pooled.square().sum().backward()
        results.append((pooled, x.grad))
    (wanted, wanted_grad), (got, got_grad) = results
    report.at_most('RoIAlign', relative_error(got, wanted), FORWARD_TOLERANCE)
    assert isinstance(got_grad, Tensor) and isinstance(wanted_grad, Tensor)
    report.at_most('RoIAlign, gradient', relative_error(got_grad, wanted_grad), BACKWARD_TOLERANCE)


def _mask_targets(device: torch.device, report: Report) -> None:
    """Targets of bitmap masks, device against CPU; targets of polygons are made on the CPU in any case."""
    rng = np.random.default_rng(2)
    objects = []
    for _ in range(20):
        height, width = rng.integers(8, 80, 2)
        coarse = rng.random((4, 4)) > 0.4
        pixels = np.kron(coarse, np.ones((20, 20), bool))[:height, :width]
        objects.append(Cutout(pixels.astype(np.uint8), int(rng.integers(0, 150)), int(rng.integers(0, 150))))
    masks = InstanceMasks(objects, SIDE_PX, SIDE_PX)
    candidates = torch.from_numpy(random_boxes(rng, 200))
    owners = torch.arange(200) % len(objects)
    targets = [make_targets([masks], candidates.to(d), owners.to(d), [200], (28, 28)) for d in ('cpu', device)]
    different = (targets[0] != targets[1].cpu()).float().mean()
    report.at_most('share of mask pixels that differ', float(different), PIXELS_DIFFERENT)
