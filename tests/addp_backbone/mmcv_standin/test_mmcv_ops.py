"""mmcv's operators on the stand-in (or on compiled ops, where there are any) against brute force."""

import subprocess
import sys

import pytest
import torch
from mmcv.ops import batched_nms, nms, roi_align
from mmcv.ops.deform_conv import deform_conv2d

from addp_backbone.mmcv_standin.finder import StandInFinder
from addp_backbone.mmcv_standin.ops import nms as stand_in_nms
from addp_backbone.mmcv_standin.ops import ops_in_use, roi_align_forward

ROIS = torch.tensor([[0, 1.0, 2.0, 13.0, 9.5], [1, -3.0, 0.0, 6.0, 20.0], [1, 4.2, 4.2, 4.6, 4.4]])


def iou(a, b):
    left, top, right, bottom = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    overlap = max(0.0, right - left) * max(0.0, bottom - top)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def brute_force_nms(boxes, scores, threshold):
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if all(iou(boxes[i].tolist(), boxes[j].tolist()) <= threshold for j in kept):
            kept.append(i)
    return kept


def bilinear(feature, y, x):
    height, width = feature.shape
    if y < -1 or y > height or x < -1 or x > width:
        return feature.new_zeros(())
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = feature[y0, x0] * (1 - (x - x0)) + feature[y0, x1] * (x - x0)
    bottom = feature[y1, x0] * (1 - (x - x0)) + feature[y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)


def brute_force_roi_align(features, rois, size, scale, samples):
    out = []
    for image, x1, y1, x2, y2 in rois.tolist():
        x1, y1, x2, y2 = (v * scale - 0.5 for v in (x1, y1, x2, y2))
        bin_h, bin_w = (y2 - y1) / size, (x2 - x1) / size
        for feature in features[int(image)]:
            for row in range(size):
                for column in range(size):
                    points = [
                        bilinear(
                            feature,
                            y1 + (row + (i + 0.5) / samples) * bin_h,
                            x1 + (column + (j + 0.5) / samples) * bin_w,
                        )
                        for i in range(samples)
                        for j in range(samples)
                    ]
                    out.append(torch.stack(points).mean())
    return torch.stack(out).reshape(len(rois), features.shape[1], size, size)


@pytest.mark.parametrize('threshold', [0.3, 0.7])
def test_nms_equals_brute_force(threshold):
    torch.manual_seed(0)
    corners = torch.rand(60, 2) * 25
    boxes = torch.cat((corners, corners + 5 + torch.rand(60, 2) * 30), dim=1)
    scores = torch.rand(60)
    detections, kept = nms(boxes, scores, iou_threshold=threshold)
    assert kept.tolist() == brute_force_nms(boxes, scores, threshold)
    assert 1 < len(kept) < 60
    torch.testing.assert_close(detections, torch.cat((boxes, scores[:, None]), dim=1)[kept])


def test_batched_nms_keeps_overlapping_boxes_of_different_classes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10.5], [0, 0, 10, 10]])
    _, kept = batched_nms(
        boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1]), dict(type='nms', iou_threshold=0.5)
    )
    assert kept.tolist() == [0, 2]


@pytest.mark.parametrize('samples', [1, 2])
def test_roi_align_equals_brute_force_in_values_and_gradients(samples):
    features = torch.randn(2, 3, 8, 10, dtype=torch.double, requires_grad=True)
    rois = ROIS.double()
    got = roi_align(features, rois, (3, 3), 0.5, samples, 'avg', True)
    wanted = brute_force_roi_align(features, rois, 3, 0.5, samples)
    torch.testing.assert_close(got, wanted)
    weights = torch.randn_like(got)
    (got_grad,) = torch.autograd.grad((got * weights).sum(), features)
    (wanted_grad,) = torch.autograd.grad((wanted * weights).sum(), features)
    torch.testing.assert_close(got_grad, wanted_grad)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_roi_align_takes_half_precision_features_under_autocast(dtype):
    features = torch.randn(2, 3, 8, 10)
    half = features.to(dtype).requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        got = roi_align(half, ROIS, (3, 3), 0.5, 2, 'avg', True)
        got.sum().backward()
    assert got.dtype == half.grad.dtype == dtype
    wanted = roi_align(features, ROIS, (3, 3), 0.5, 2, 'avg', True)
    torch.testing.assert_close(got.float(), wanted, atol=0.03, rtol=0.03)


def test_roi_align_without_rois_keeps_the_graph():
    features = torch.randn(1, 3, 8, 8, requires_grad=True)
    roi_align(features, torch.zeros(0, 5), (3, 3), 1.0, 0, 'avg', True).sum().backward()
    assert features.grad is not None and not features.grad.any()


def test_maximum_pooling_and_legacy_offsets_are_refused():
    empty = torch.zeros(0)
    with pytest.raises(NotImplementedError, match='pool_mode=1'):
        roi_align_forward(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), empty, empty, empty, 2, 2, 1.0, 0, 0, True)
    with pytest.raises(NotImplementedError, match='offset=0, got offset=1'):
        stand_in_nms(torch.zeros(1, 4), torch.zeros(1), 0.5, 1)


@pytest.mark.skipif(ops_in_use() == 'compiled', reason='mmcv has compiled ops here')
def test_every_other_op_names_itself_and_the_way_to_compile_it():
    with pytest.raises(NotImplementedError, match=r"'deform_conv_forward' is not compiled.*MMCV_WITH_OPS=1"):
        deform_conv2d(torch.zeros(1, 1, 4, 4), torch.zeros(1, 18, 2, 2), torch.zeros(1, 1, 3, 3))


def test_compiled_ops_are_found_before_the_stand_in(tmp_path):
    """A real module called ``mmcv._ext`` on mmcv's path stands for compiled ops."""
    (tmp_path / '_ext.py').write_text('compiled = True\n')
    code = (
        f'import mmcv; mmcv.__path__.insert(0, {str(tmp_path)!r}); import addp_backbone.mmcv_standin.finder as f; '
        'f.install(); '
        'import mmcv._ext as e; print(e.compiled)'
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'True\n'


def test_the_stand_in_is_installed_once_and_answers_for_nothing_else():
    import addp_backbone.mmcv_standin.finder as finder

    finder.install()
    assert sum(type(f).__name__ == 'StandInFinder' for f in sys.meta_path) == 1
    assert StandInFinder().find_spec('mmcv.other') is None
