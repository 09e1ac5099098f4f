"""Our Mask R-CNN beside detectron2's of projects/ViTDet: the same weights and images, every stage apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_detector import SCENES, GoldenDetector
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from pycocotools import mask as mask_codec
from torch import Tensor

TOLERANCE = dict(rtol=0, atol=1e-4)
BOX_TOLERANCE_PX = dict(rtol=0, atol=0.1)


@pytest.fixture(scope='module')
def golden(shared_dir: Path) -> GoldenDetector:
    detector = GoldenDetector(shared_dir / 'golden')
    DefaultScope._instance_dict.clear()
    return detector


@pytest.fixture(scope='module')
def inference(golden: GoldenDetector) -> dict[str, Any]:
    """What our detector makes of the images, stage by stage."""
    model = golden.model.eval()
    batch = golden.batch()
    with torch.no_grad():
        maps = model.extract_feat(batch['inputs'])
        logits, deltas = model.rpn_head(maps)
        proposals = model.rpn_head.predict(maps, batch['data_samples'], rescale=False)
        detections = model.roi_head.predict(maps, [p.clone() for p in proposals], batch['data_samples'], rescale=False)
        finished = model.predict(batch['inputs'], batch['data_samples'])
    return dict(
        batch=batch,
        maps=maps,
        logits=logits,
        deltas=deltas,
        proposals=proposals,
        detections=detections,
        finished=[sample.pred_instances for sample in finished],
    )


@pytest.fixture(scope='module')
def losses(golden: GoldenDetector) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Our losses of each scene, with its masks as polygons and as bitmaps."""
    with torch.no_grad():
        return {(scene, masks): golden.losses(scene, masks) for scene in SCENES for masks in ('polygons', 'bitmaps')}


def test_preprocessed_batch_is_detectron2s(golden, inference):
    batch = inference['batch']['inputs']
    sample = golden.outputs['batch_sample']
    assert batch.shape[-1] == batch.shape[-2] == golden.sizes['img_size']
    assert batch.double().abs().sum().item() == pytest.approx(golden.sizes['batch_abs_sum'], rel=1e-6)
    assert batch.double().sum().item() == pytest.approx(golden.sizes['batch_sum'], rel=1e-6)
    torch.testing.assert_close(*_same_places(batch, sample), **TOLERANCE)


@pytest.mark.parametrize('level', [2, 3, 4, 5, 6])
def test_pyramid_level_is_detectron2s(golden, inference, level):
    torch.testing.assert_close(*_same_places(inference['maps'][level - 2], golden.outputs[f'p{level}']), **TOLERANCE)


@pytest.mark.parametrize('level', [2, 3, 4, 5, 6])
def test_rpn_outputs_of_a_level_are_detectron2s(golden, inference, level):
    for ours, wanted in ((inference['logits'], 'rpn_logits'), (inference['deltas'], 'rpn_deltas')):
        torch.testing.assert_close(*_same_places(ours[level - 2], golden.outputs[f'{wanted}_{level}']), **TOLERANCE)


def _same_places(ours: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The golden file keeps every second row and column of large maps."""
    step = ours.shape[-1] // wanted.shape[-1]
    return ours[..., ::step, ::step], wanted


def test_anchors_are_detectron2s_bit_by_bit(golden, inference):
    sizes = [logits.shape[-2:] for logits in inference['logits']]
    anchors = golden.model.rpn_head.prior_generator.grid_priors(sizes, device='cpu')
    for level, of_level in enumerate(anchors):
        assert torch.equal(of_level[:3], golden.outputs['anchors_first'][level])
        assert torch.equal(of_level[-3:], golden.outputs['anchors_last'][level])


@pytest.mark.parametrize('image', [0, 1])
def test_proposals_are_detectron2s(golden, inference, image):
    ours, wanted = inference['proposals'][image], golden.outputs[f'proposals_{image}']
    assert len(ours.bboxes) == golden.sizes['num_proposals'][image]
    scores = golden.outputs[f'proposal_logits_{image}'].sigmoid()
    order = _nearest(wanted, ours.bboxes, 1e4 * (scores[:, None] - ours.scores).abs())
    torch.testing.assert_close(ours.bboxes[order], wanted, **BOX_TOLERANCE_PX)
    torch.testing.assert_close(ours.scores[order], scores, **TOLERANCE)


@pytest.mark.parametrize('image', [0, 1])
def test_pooled_features_and_box_head_outputs_are_detectron2s(golden, inference, image):
    head, boxes = golden.model.roi_head, golden.outputs[f'proposals_{image}'][:64]
    rois = torch.cat((torch.full((len(boxes), 1), float(image)), boxes), dim=1)
    with torch.no_grad():
        results = head._bbox_forward(inference['maps'], rois)
    features = golden.outputs[f'roi_features_{image}']
    torch.testing.assert_close(results['bbox_feats'][: len(features)], features, **TOLERANCE)
    torch.testing.assert_close(results['cls_score'].softmax(1), golden.outputs[f'class_probs_{image}'], **TOLERANCE)
    torch.testing.assert_close(results['bbox_pred'], golden.outputs[f'box_deltas_{image}'], **TOLERANCE)


@pytest.mark.parametrize('image', [0, 1])
def test_detections_are_detectron2s(golden, inference, image):
    ours = inference['detections'][image]
    order = _matching(golden, inference, image)
    torch.testing.assert_close(ours.bboxes[order], golden.outputs[f'boxes_{image}'], **BOX_TOLERANCE_PX)
    torch.testing.assert_close(ours.scores[order], golden.outputs[f'scores_{image}'], **TOLERANCE)
    assert torch.equal(ours.labels[order], golden.outputs[f'classes_{image}'])
    finished = inference['finished'][image]
    torch.testing.assert_close(finished.bboxes[order], golden.outputs[f'out_boxes_{image}'], rtol=0, atol=0.2)


@pytest.mark.parametrize('image', [0, 1])
def test_mask_probabilities_are_detectron2s(golden, inference, image):
    head, boxes = golden.model.roi_head, golden.outputs[f'boxes_{image}']
    rois = torch.cat((torch.full((len(boxes), 1), float(image)), boxes), dim=1)
    with torch.no_grad():
        logits = head._mask_forward(inference['maps'], rois)['mask_preds']
    probs = logits[torch.arange(len(boxes)), golden.outputs[f'classes_{image}']].sigmoid()
    torch.testing.assert_close(probs, golden.outputs[f'mask_probs_{image}'], **TOLERANCE)


@pytest.mark.parametrize('image', [0, 1])
def test_pasted_masks_are_detectron2s_but_for_a_few_pixels(golden, inference, image):
    height, width = golden.sizes['output_sizes'][image]
    ours = inference['finished'][image].masks[_matching(golden, inference, image)]
    rles = [dict(size=[height, width], counts=counts) for counts in golden.sizes['masks'][image]]
    wanted = torch.from_numpy(mask_codec.decode(rles)).permute(2, 0, 1).bool()
    assert ours.shape == wanted.shape
    assert (ours != wanted).float().mean().item() < 1e-4


def _matching(golden: GoldenDetector, inference: dict[str, Any], image: int) -> Tensor:
    """Where in our list each of detectron2's detections stands."""
    ours = inference['detections'][image]
    boxes, classes = golden.outputs[f'boxes_{image}'], golden.outputs[f'classes_{image}']
    assert len(ours.bboxes) == len(boxes)
    return _nearest(boxes, ours.bboxes, 1e6 * (classes[:, None] != ours.labels))


def _nearest(wanted: Tensor, ours: Tensor, penalty: Tensor | float = 0.0) -> Tensor:
    """The index of our box for each of detectron2's: scores may tie within rounding, so that the order may differ."""
    order = (torch.cdist(wanted, ours, p=float('inf')) + penalty).argmin(dim=1)
    assert len(order.unique()) == len(order)
    return order


@pytest.mark.parametrize('scene', SCENES)
@pytest.mark.parametrize('name', ['loss_rpn_cls', 'loss_rpn_loc', 'loss_cls', 'loss_box_reg'])
def test_a_loss_of_a_scene_is_detectron2s(golden, losses, scene, name):
    wanted = golden.sizes['scenes'][scene]['losses'][name]
    assert losses[scene, 'polygons'][name].item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize('scene', SCENES)
@pytest.mark.parametrize('masks', ['polygons', 'bitmaps'])
def test_the_mask_loss_of_a_scene_is_detectron2s(golden, losses, scene, masks):
    record = golden.sizes['scenes'][scene]
    wanted = record['loss_mask_polygons'] if masks == 'polygons' else record['losses']['loss_mask']
    assert losses[scene, masks]['loss_mask'].item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize('scene', SCENES)
def test_an_anchor_of_a_scene_belongs_to_the_object_that_detectron2_gave_it(golden, inference, scene):
    sizes = [logits.shape[-2:] for logits in inference['logits']]
    anchors = torch.cat(golden.model.rpn_head.prior_generator.grid_priors(sizes, device='cpu'))
    for image in range(golden.num_images):
        if f'{scene}.rpn_positive_gt_{image}' in golden.outputs:
            objects = golden.objects(scene, image)
            assigned = golden.model.rpn_head.assigner.assign(InstanceData(priors=anchors), objects)
            positive = golden.outputs[f'{scene}.rpn_positive_{image}'].long()
            owners = golden.outputs[f'{scene}.rpn_positive_gt_{image}'].long()
            assert torch.equal(assigned.gt_inds[positive] - 1, owners)


@pytest.mark.parametrize('scene', SCENES)
def test_gradients_of_a_scene_are_detectron2s(golden, scene):
    gradients = golden.gradients(scene)
    wanted = golden.sizes['scenes'][scene]['grad_norms']
    assert {name: grad.norm().item() for name, grad in gradients.items()} == pytest.approx(wanted, rel=1e-2, abs=1e-5)
    prefix = f'{scene}.grad.'
    stored = [name.removeprefix(prefix) for name in golden.outputs if name.startswith(prefix)]
    assert stored
    for name in stored:
        torch.testing.assert_close(gradients[name], golden.outputs[prefix + name], rtol=1e-2, atol=1e-4)
