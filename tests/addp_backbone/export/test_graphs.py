"""The graphs that are exported, run by torch: equal to the models they stand for. No ONNX package is needed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmengine.config import Config
from PIL import Image
from small_configs import REPOSITORY
from small_exports import batch, build, samples, write_detector, write_segmentor
from torch import nn
from torch.nn import functional as F

from addp_backbone.export.build import ResizedViT, plan_export
from addp_backbone.export.detector import DetectorGraph
from addp_backbone.export.linear_maps import MatrixPool, resizing_matrix
from addp_backbone.export.onnx_model import class_map_of, paste_mask
from addp_backbone.export.plan import ExportError
from addp_backbone.export.preprocessing import prepare_image
from addp_backbone.export.segmentor import merge, window_pixels
from addp_backbone.export.vit import TracedViT
from addp_backbone.networks.timm_vit import TimmViT
from addp_backbone.networks.vit import ADDPViT


@pytest.mark.parametrize('rel_pos', [True, False])
@pytest.mark.parametrize('size', [(64, 64), (80, 112), (16, 48)])
def test_traced_vit_equals_addp_vit_at_every_size(size: tuple[int, int], rel_pos: bool) -> None:
    arch = dict(width=24, depth=3, num_heads=3)
    vit = ADDPViT(arch, img_size=64, window_size=3, global_attn_indices=[1], rel_pos=rel_pos, out_indices=(0, 2)).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.2)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        wanted, got = vit(images), TracedViT(vit)(images)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [1, 2, 3, 6])
def test_pooling_by_matrices_equals_torch(size: int) -> None:
    x = torch.randn(2, 3, 11, 8)
    torch.testing.assert_close(MatrixPool(size)(x), F.adaptive_avg_pool2d(x, size))


def test_resizing_by_matrices_equals_torch() -> None:
    x = torch.randn(1, 3, 32, 48)
    wanted = F.interpolate(x, (28, 42), mode='bilinear', antialias=True)
    torch.testing.assert_close(resizing_matrix(32, 28) @ x @ resizing_matrix(48, 42).t(), wanted)


def test_timm_vit_with_another_stride_is_resized_as_it_does_itself() -> None:
    vit = TimmViT('test_vit', img_size=64, stride=32).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ResizedViT(vit, (64, 96))(images)[0], vit(images)[0], rtol=1e-4, atol=1e-5)
    assert vit.stride == 32, 'the model itself is left as it is'


class TimmModel(nn.Module):
    """A backbone of timm: one block with relative biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = TimmViT('beit_base_patch16_224', img_size=96, out_indices=(0,)).eval()
        nn.init.normal_(self.table)

    @property
    def table(self) -> torch.Tensor:
        return self.backbone.vit.blocks[0].attn.relative_position_bias_table


def test_relative_biases_are_resized_once_and_in_a_copy() -> None:
    model, images = TimmModel(), torch.randn(2, 3, 48, 80)
    graph = plan_export(model, 'backbone', (48, 80)).graph
    with torch.no_grad():
        torch.testing.assert_close(graph(images)[0], model.backbone(images)[0], rtol=1e-4, atol=1e-5)
    (resized,) = (value for name, value in graph.named_parameters() if name.endswith('relative_position_bias_table'))
    assert len(resized) == 5 * 9 + 3 and len(model.table) == 11 * 11 + 3


@pytest.mark.parametrize('length', [10, 11, 16, 17, 25, 40])
@pytest.mark.parametrize('stride', [3, 7, 10])
def test_merged_windows_are_the_mean_over_all_that_cover_a_pixel(length: int, stride: int) -> None:
    pixels = window_pixels(length, 10, stride)
    values = torch.randn(2, *pixels.shape)
    total, count = torch.zeros(2, length), torch.zeros(length)
    for window, positions in enumerate(pixels):
        total[:, positions] += values[:, window]
        count[positions] += 1
    assert count.min() > 0
    torch.testing.assert_close(merge(values.flatten(1), length, 10, stride, len(pixels)), total / count)


def test_segmentor_graph_equals_sliding_inference(tmp_path: Path) -> None:
    model = build(write_segmentor(tmp_path))
    graph = plan_export(model).graph
    for size in ((32, 32), (41, 75)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            wanted = model.inference(images, [dict(ori_shape=size, img_shape=size)] * 2)
            logits, class_map = graph(images)
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(class_map, logits.argmax(dim=1))


@pytest.mark.parametrize('kind', ['masks', 'boxes', 'cascade'])
def test_detector_graph_equals_mmdet(kind: str, tmp_path: Path) -> None:
    model = build(cascade(tmp_path) if kind == 'cascade' else write_detector(tmp_path, boxes_only=kind == 'boxes'))
    for name, parameter in model.named_parameters():
        if 'reg' in name:
            parameter.data *= (
                0.1  # boxes that move far with each rounding would leave nothing to compare after 3 stages
            )
    graph = plan_export(model, size=(128, 128) if kind == 'cascade' else None).graph
    for number, height, width in ((2, 128, 128),) if kind == 'cascade' else ((3, 96, 128), (1, 64, 64)):
        images, sizes = batch(number, height, width)
        with torch.no_grad():
            wanted = model.predict(images, samples(sizes, (height, width)))
            boxes, scores, labels, counts, *masks = graph(images, torch.tensor(sizes))
        assert counts.sum() > number, 'something is found'
        for i, result in enumerate(instance.pred_instances for instance in wanted):
            found = int(counts[i])
            assert found == len(result)
            torch.testing.assert_close(boxes[i, :found], result.bboxes, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(scores[i, :found], result.scores, rtol=1e-4, atol=1e-5)
            assert torch.equal(labels[i, :found], result.labels)
            assert (labels[i, found:] == -1).all() and (scores[i, found:] == 0).all() and (boxes[i, found:] == 0).all()
            if masks:
                mine = [
                    paste_mask(m.numpy(), b.numpy(), *sizes[i])
                    for m, b in zip(masks[0][i][:found], result.bboxes, strict=True)
                ]
                assert np.mean((np.array(mine) >= 0.5) != np.asarray(result.masks)) < 1e-3
        assert bool(masks) == (kind != 'boxes')


def cascade(folder: Path) -> Config:
    """Cascade Mask R-CNN with a small ViT."""
    cfg = Config.fromfile(REPOSITORY / 'det_configs/addp_base_cascade.py')
    cfg.model.data_preprocessor.pad_size_divisor = 32
    arch = dict(width=24, depth=2, num_heads=3)
    cfg.model.backbone.update(arch=arch, img_size=128, window_size=3, init_cfg=None)
    cfg.model.neck.update(in_channels=24, out_channels=16)
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    roi = cfg.model.roi_head
    for extractor in (roi.bbox_roi_extractor, roi.mask_roi_extractor):
        extractor.out_channels = 16
    for head in (*roi.bbox_head, roi.mask_head):
        head.update(in_channels=16, conv_out_channels=16, num_classes=3)
        if 'fc_out_channels' in head:
            head.update(fc_out_channels=32, num_shared_convs=1)
    cfg.model.test_cfg.update(rpn=dict(cfg.model.test_cfg.rpn, nms_pre=40, max_per_img=30))
    return cfg


def test_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    model = build(write_segmentor(tmp_path))
    plan_export(model)
    assert any(isinstance(module, nn.AdaptiveAvgPool2d) for module in model.modules())


def test_a_mask_is_pasted_as_mmdet_does() -> None:
    mask = torch.rand(1, 1, 28, 28)
    box = torch.tensor([[-3.2, 4.1, 37.7, 30.9]])
    wanted, _ = _do_paste_mask(mask, box, 40, 50, skip_empty=False)
    np.testing.assert_allclose(paste_mask(mask[0, 0].numpy(), box[0].numpy(), 40, 50), wanted[0].numpy(), atol=1e-5)


def test_logits_are_resized_to_the_image_as_mmseg_does() -> None:
    logits = torch.randn(3, 24, 40)
    resized = F.interpolate(logits[None, :, :21, :33], (50, 70), mode='bilinear')[0]
    wanted = resized.argmax(dim=0).numpy()
    assert np.mean(class_map_of(logits.numpy(), (21, 33), (70, 50)) != wanted) < 1e-3


def test_an_image_is_prepared_as_the_pipeline_does() -> None:
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8), (5, 5), 0)
    description = dict(
        channels='RGB', mean=[0.0] * 3, std=[1.0] * 3, longest=96, shortest=60, multiple=32, smallest=(32, 32)
    )
    prepared, size = prepare_image(Image.fromarray(pixels), description)
    assert size == (60, 87) and prepared.shape == (3, 64, 96)
    wanted = cv2.resize(pixels, (87, 60), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    assert np.abs(prepared[:, :60, :87] - wanted).max() <= 1
    assert not prepared[:, 60:].any() and not prepared[:, :, 87:].any()


def test_what_cannot_be_exported_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = build(write_detector(tmp_path))
    with pytest.raises(ExportError, match='wanted one of model, neck, backbone'):
        plan_export(model, 'head')
    with pytest.raises(ExportError, match='size is 60 x 64, wanted multiples of 8'):
        plan_export(model, size=(60, 64))
    model.roi_head.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(ExportError, match='soft_nms'):
        plan_export(model)


def test_a_backbone_with_one_size_says_why_and_which() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = TimmViT('test_vit', img_size=64)

    plan = plan_export(Model(), 'backbone', None, dict(longest=70, pad_multiple=32))
    assert str(plan.sizes).startswith('size 96 x 96 (positions of TimmViT are resized once')
    with pytest.raises(ExportError, match='give --size'):
        plan_export(Model(), 'backbone')


def test_padding_to_one_square_fixes_the_size(tmp_path: Path) -> None:
    plan = plan_export(build(write_detector(tmp_path)), 'model', None, dict(longest=96, pad_multiple=96))
    assert plan.sizes.fixed == (96, 96) and 'pads every image to 96 x 96' in str(plan.sizes)
    assert isinstance(plan.graph, DetectorGraph)
