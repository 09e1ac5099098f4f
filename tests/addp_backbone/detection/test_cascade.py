"""The heads of Cascade Mask R-CNN, against detectron2's procedure written as a plain loop over images and stages."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from golden_detector import build, detector_config
from mmdet.structures import DetDataSample
from mmdet.structures.mask import PolygonMasks
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou, roi_align

NUM_CLASSES, CHANNELS, SIDE_PX = 3, 8, 128
WEIGHTS = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
IOUS = (0.5, 0.6, 0.7)
SIZES = dict(
    img_size=SIDE_PX,
    pretrain_img_size=64,
    embed_dim=24,
    depth=2,
    num_heads=2,
    window_size=2,
    window_block_indexes=[0],
    out_channels=CHANNELS,
    box_conv=CHANNELS,
    box_fc=16,
    mask_conv=CHANNELS,
    num_classes=NUM_CLASSES,
)
OBJECTS = torch.tensor([[10.0, 12, 60, 70], [50, 40, 110, 100]])
IMAGE_SIZES = ((96, 128), (128, 100))


@pytest.fixture(scope='module')
def heads() -> Iterator[nn.Module]:
    """Cascade heads with random weights, large enough that boxes move and classes are sure."""
    torch.manual_seed(0)
    head = build(detector_config('vitdet_base_cascade.py', SIZES)).roi_head
    head.init_weights()
    for stage in head.bbox_head:
        nn.init.normal_(stage.fc_cls.weight, std=0.5)
        nn.init.normal_(stage.fc_reg.weight, std=0.2)
    DefaultScope._instance_dict.clear()
    yield head


def _maps(requires_grad: bool = False) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, CHANNELS, SIDE_PX // s, SIDE_PX // s, generator=generator) for s in (4, 8, 16, 32, 64)]
    return tuple(map_.requires_grad_(requires_grad) for map_ in maps)


def _proposals() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    noise = [torch.randn(30, 4, generator=generator) * 8 for _ in range(2)]
    boxes = [OBJECTS.repeat(15, 1) + noise_ for noise_ in noise]
    return [_clip(boxes_, size) for boxes_, size in zip(boxes, IMAGE_SIZES, strict=True)]


def _samples() -> list[DetDataSample]:
    samples = []
    for size in IMAGE_SIZES:
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        outlines = [[box[[0, 1, 2, 1, 2, 3, 0, 3]].numpy()] for box in OBJECTS]
        sample.gt_instances = InstanceData(
            bboxes=OBJECTS.clone(), labels=torch.tensor([0, 2]), masks=PolygonMasks(outlines, *size)
        )
        samples.append(sample)
    return samples


def _clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.stack((boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])), dim=2).flatten(1)


def _decode(boxes: Tensor, deltas: Tensor, weights: tuple[int, ...]) -> Tensor:
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    dx, dw = deltas[:, :2] / weights[0], (deltas[:, 2:] / weights[2]).clamp(max=torch.log(torch.tensor(1000 / 16)))
    centres, sides = centres + dx * sides, sides * dw.exp()
    return torch.cat((centres - sides / 2, centres + sides / 2), dim=1)


def _encode(boxes: Tensor, targets: Tensor, weights: tuple[int, ...]) -> Tensor:
    sides, target_sides = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2
    return torch.cat((weights[0] * shift / sides, weights[2] * (target_sides / sides).log()), dim=1)


def _pool(maps: tuple[Tensor, ...], image: int, boxes: Tensor, size: int) -> Tensor:
    """RoIAlign of each box on the level of its size, one box at a time."""
    pooled = []
    for box in boxes:
        side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
        level = int(torch.floor(4 + torch.log2(side / 224 + 1e-8)).clamp(2, 5)) - 2
        pooled.append(roi_align(maps[level][image : image + 1], [box[None]], size, 1 / 4 / 2**level, 0, True))
    return torch.cat(pooled)


def test_probabilities_are_averaged_over_the_stages_and_boxes_are_the_last_ones(heads: nn.Module) -> None:
    maps, boxes = _maps(), _proposals()
    results = [InstanceData(bboxes=boxes_) for boxes_ in boxes]
    with torch.no_grad():
        ours = heads.eval().predict_bbox(maps, [s.metainfo for s in _samples()], results, heads.test_cfg)
        for image, size in enumerate(IMAGE_SIZES):
            current, total = boxes[image], 0
            for head, weights in zip(heads.bbox_head, WEIGHTS, strict=True):
                logits, deltas = head(_pool(maps, image, current, 7))
                total = total + logits.softmax(1)
                current = _clip(_decode(current, deltas, weights), size)
            probs = total[:, :-1] / 3
            rows, classes = (probs > 0.05).nonzero(as_tuple=True)
            kept = batched_nms(current[rows], probs[rows, classes], classes, 0.5)[:100]
            assert len(kept) > 10
            torch.testing.assert_close(ours[image].scores, probs[rows, classes][kept], rtol=0, atol=1e-5)
            torch.testing.assert_close(ours[image].bboxes, current[rows][kept], rtol=0, atol=1e-3)
            assert torch.equal(ours[image].labels, classes[kept])


def _all_boxes(heads: nn.Module) -> nn.Module:
    """The same heads, whose first stage samples every box, so that nothing is random."""
    heads = copy.deepcopy(heads)
    heads.bbox_sampler.num = 10_000
    heads.bbox_sampler.pos_fraction = 1.0
    return heads


def test_losses_are_those_of_detectron2s_procedure(heads: nn.Module) -> None:
    heads = _all_boxes(heads).train()
    maps, samples = _maps(requires_grad=True), _samples()
    losses = heads.loss(maps, [InstanceData(bboxes=boxes) for boxes in _proposals()], samples)
    sum(loss for name, loss in losses.items() if 'loss' in name).backward()
    ours = [map_.grad.clone() for map_ in maps[:4]]

    maps = _maps(requires_grad=True)
    boxes = [torch.cat((OBJECTS, boxes_)) for boxes_ in _proposals()]
    wanted = {}
    mask_logits, mask_targets = [], []
    for stage, (head, weights, iou) in enumerate(zip(heads.bbox_head, WEIGHTS, IOUS, strict=True)):
        logits, deltas, classes, targets, refined = [], [], [], [], []
        for image, size in enumerate(IMAGE_SIZES):
            best, owners = box_iou(OBJECTS, boxes[image]).max(dim=0)
            labels = torch.where(best >= iou, torch.tensor([0, 2])[owners], NUM_CLASSES)
            features = _pool(maps, image, boxes[image], 7)
            features.register_hook(lambda grad: grad / 3)
            out = head(features)
            logits.append(out[0])
            deltas.append(out[1])
            classes.append(labels)
            targets.append(_encode(boxes[image], OBJECTS[owners], weights))
            if stage == 0:
                _mask_head(heads, maps, image, boxes[image], labels, owners, mask_logits, mask_targets)
            new = _clip(_decode(boxes[image], out[1].detach(), weights), size)
            refined.append(new[(new[:, 2] > new[:, 0]) & (new[:, 3] > new[:, 1])])
        logits, deltas, classes, targets = map(torch.cat, (logits, deltas, classes, targets))
        is_object = classes < NUM_CLASSES
        assert 0 < is_object.sum() < len(classes)
        wanted[f's{stage}.loss_cls'] = F.cross_entropy(logits, classes)
        wanted[f's{stage}.loss_bbox'] = (deltas - targets)[is_object].abs().sum() / len(classes)
        boxes = refined
    wanted['loss_mask'] = F.binary_cross_entropy_with_logits(torch.cat(mask_logits), torch.cat(mask_targets))

    assert {name for name in losses if 'loss' in name} == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name].sum(), value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f'{n}: {m}')
    sum(wanted.values()).backward()
    for map_, grad in zip(maps[:4], ours, strict=True):
        wanted_grad = torch.zeros_like(map_) if map_.grad is None else map_.grad
        torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=1e-6)


def _mask_head(
    heads: nn.Module,
    maps: tuple[Tensor, ...],
    image: int,
    boxes: Tensor,
    labels: Tensor,
    owners: Tensor,
    all_logits: list[Tensor],
    all_targets: list[Tensor],
) -> None:
    """Adds the mask head's logits and targets of the first stage's positive boxes; objects are rectangles."""
    positive = labels < NUM_CLASSES
    logits = heads.mask_head(_pool(maps, image, boxes[positive], 14))
    all_logits.append(logits[torch.arange(len(logits)), labels[positive]])
    masks = _samples()[image].gt_instances.masks
    targets = masks.crop_and_resize(boxes[positive].numpy(), (28, 28), owners[positive].numpy())
    all_targets.append(torch.from_numpy(targets.to_ndarray()).float())


def test_there_is_one_mask_head_and_three_box_heads(heads: nn.Module) -> None:
    names = {'.'.join(name.split('.')[:2]) for name in heads.state_dict()}
    assert names == {'bbox_head.0', 'bbox_head.1', 'bbox_head.2'} | {
        f'mask_head.{part}' for part in ('convs', 'upsample', 'conv_logits')
    }


def test_a_box_that_a_stage_makes_empty_trains_no_further_stage(heads: nn.Module) -> None:
    heads = _all_boxes(heads).train()
    nn.init.zeros_(heads.bbox_head[0].fc_reg.weight)
    heads.bbox_head[0].fc_reg.bias.data = torch.tensor([1000.0, 1000, 0, 0])  # far out of the image: clipped to nothing
    samples = _samples()
    losses = heads.loss(_maps(True), [InstanceData(bboxes=boxes) for boxes in _proposals()], samples)
    assert losses['s1.loss_cls'] == losses['s2.loss_bbox'] == 0
    sum(loss.sum() for name, loss in losses.items() if 'loss' in name).backward()
    assert all(param.grad is not None for param in heads.parameters())


def test_the_heads_without_post_processing_give_probabilities_deltas_and_mask_logits(heads: nn.Module) -> None:
    with torch.no_grad():
        probs, deltas, masks = heads(_maps(), [InstanceData(bboxes=boxes) for boxes in _proposals()], _samples())
    assert (probs.shape, deltas.shape, masks.shape) == ((60, NUM_CLASSES + 1), (60, 4), (60, NUM_CLASSES, 28, 28))
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(60))


def test_no_proposals_give_no_detections(heads: nn.Module) -> None:
    metas = [sample.metainfo for sample in _samples()]
    with torch.no_grad():
        empty = [InstanceData(bboxes=torch.zeros(0, 4)) for _ in metas]
        results = heads.eval().predict_bbox(_maps(), metas, empty, heads.test_cfg)
    assert [len(result.bboxes) for result in results] == [0, 0]


def test_class_specific_boxes_and_a_wrong_number_of_stages_are_refused() -> None:
    cfg = detector_config('vitdet_base_cascade.py', SIZES)
    cfg.model.roi_head.bbox_head[1].reg_class_agnostic = False
    with pytest.raises(ValueError, match='reg_class_agnostic=True'):
        build(cfg)
    cfg = detector_config('vitdet_base_cascade.py', SIZES)
    cfg.model.train_cfg.rcnn = cfg.model.train_cfg.rcnn[:2]
    with pytest.raises(ValueError, match='one entry for each of the 3 box heads, got 2'):
        build(cfg)
