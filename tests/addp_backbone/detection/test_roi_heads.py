"""Where the RoI heads are not mmdet's: RoIAlign in float32, targets of a whole batch, sampling on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from addp_backbone.detection.instance_masks import InstanceMasks
from addp_backbone.detection.mask_head import BatchTargetMaskHead
from addp_backbone.detection.roi_extractor import Float32RoIExtractor
from addp_backbone.detection.sampler import DeviceRandomSampler

CONFIGS = Path(__file__).resolve().parents[3] / 'det_configs'
SIDE_PX = 1024
STRIDES = [4, 8, 16, 32]


def extractor_options(use_torchvision: bool = True) -> dict:
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0, use_torchvision=use_torchvision)
    return dict(roi_layer=layer, out_channels=4, featmap_strides=STRIDES)


def maps_and_rois(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Maps that change from pixel to pixel, and boxes of 16 to 724 px all over an image of 1024 px."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 4, SIDE_PX // s, SIDE_PX // s, generator=generator).to(dtype) for s in STRIDES]
    sides = 16 * 2 ** (5.5 * torch.rand(200, 2, generator=generator))
    corners = torch.rand(200, 2, generator=generator) * (SIDE_PX - sides)
    image = torch.randint(0, 2, (200, 1), generator=generator).float()
    return maps, torch.cat((image, corners, corners + sides), dim=1)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_proposals_under_autocast_are_those_that_the_same_scores_and_deltas_give_in_float32(dtype: torch.dtype) -> None:
    cfg = Config.fromfile(CONFIGS / 'addp_base_maskrcnn.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MODELS.build(dict(cfg.model.rpn_head, feat_channels=8, in_channels=8, num_convs=1))
    generator = torch.Generator().manual_seed(0)
    sides = [SIDE_PX // s // 4 for s in (4, 8, 16, 32, 64)]
    scores = [torch.randn(1, 3, side, side, generator=generator).to(dtype) for side in sides]
    deltas = [torch.randn(1, 12, side, side, generator=generator).mul(0.3).to(dtype) for side in sides]
    metas = [dict(img_shape=(SIDE_PX, SIDE_PX), scale_factor=(1.0, 1.0), ori_shape=(SIDE_PX, SIDE_PX))]
    with torch.autocast('cpu', dtype):
        (proposals,) = head.predict_by_feat(scores, deltas, batch_img_metas=metas, cfg=cfg.model.test_cfg.rpn)
    (wanted,) = RPNHead.predict_by_feat(
        head,
        [x.float() for x in scores],
        [x.float() for x in deltas],
        batch_img_metas=metas,
        cfg=cfg.model.test_cfg.rpn,
    )
    assert proposals.bboxes.dtype == torch.float32
    assert torch.equal(proposals.bboxes, wanted.bboxes) and torch.equal(proposals.scores, wanted.scores)
    (mmdets,) = RPNHead.predict_by_feat(head, scores, deltas, batch_img_metas=metas, cfg=cfg.model.test_cfg.rpn)
    assert mmdets.bboxes.dtype == dtype  # what the override is for


@pytest.mark.parametrize('use_torchvision', [True, False])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_rois_at_1024_px_are_pooled_as_in_float32_whatever_the_maps_precision(
    dtype: torch.dtype, use_torchvision: bool
) -> None:
    maps, rois = maps_and_rois(dtype)
    wanted = SingleRoIExtractor(**extractor_options())([m.float() for m in maps], rois)
    with torch.autocast('cpu', dtype):
        pooled = Float32RoIExtractor(**extractor_options(use_torchvision))(maps, rois)
        mmdets = SingleRoIExtractor(**extractor_options(False))(maps, rois)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, wanted.to(dtype))
    if dtype == torch.bfloat16:
        assert (mmdets.float() - wanted).norm() > 0.05 * wanted.norm()  # what this class is for


def test_gradients_of_pooling_are_those_of_float32() -> None:
    maps, rois = maps_and_rois(torch.bfloat16)
    gradients = []
    for extractor, cast in ((Float32RoIExtractor, torch.bfloat16), (SingleRoIExtractor, torch.float32)):
        leaves = [m.detach().clone().to(cast).requires_grad_() for m in maps]
        extractor(**extractor_options())(leaves, rois).float().square().sum().backward()
        gradients.append([leaf.grad.float() for leaf in leaves])
    for ours, wanted in zip(*gradients, strict=True):
        assert (ours - wanted).norm() <= 1e-2 * wanted.norm()
    assert gradients[1][0].norm() > 0


def test_in_float32_the_extractor_is_mmdets() -> None:
    maps, rois = maps_and_rois(torch.float32)
    ours, mmdets = Float32RoIExtractor(**extractor_options()), SingleRoIExtractor(**extractor_options(False))
    assert torch.equal(ours(maps, rois), mmdets(maps, rois))
    assert torch.equal(ours(maps, rois, 1.5), mmdets(maps, rois, 1.5))
    assert ours(maps, rois[:0]).shape == (0, 4, 7, 7)


@pytest.mark.parametrize(
    'leaf', ['addp_base_maskrcnn', 'addp_large_cascade', 'addp_tiny_maskrcnn', 'addp_base_fasterrcnn']
)
def test_the_recipes_pool_in_float32_and_sample_on_the_device(leaf: str) -> None:
    model = Config.fromfile(CONFIGS / f'{leaf}.py').model
    extractors = [model.roi_head[name] for name in ('bbox_roi_extractor', 'mask_roi_extractor') if model.roi_head[name]]
    assert all(e.type.endswith('Float32RoIExtractor') and e.roi_layer.use_torchvision for e in extractors)
    rcnn = model.train_cfg.rcnn if isinstance(model.train_cfg.rcnn, list) else [model.train_cfg.rcnn]
    assert all(part.sampler.type.endswith('DeviceRandomSampler') for part in [model.train_cfg.rpn, *rcnn])


def squares(num: int, seed: int) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Boxes in an image of 64 px and polygons that are rhombi in them."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (num, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(8, 24, (num, 2))), axis=1).astype(np.float32)
    rhombi = [
        [np.array([[x1, (y1 + y2) / 2], [(x1 + x2) / 2, y1], [x2, (y1 + y2) / 2], [(x1 + x2) / 2, y2]])]
        for x1, y1, x2, y2 in boxes.astype(float)
    ]
    return boxes, rhombi


def sampled(boxes: np.ndarray, owners: list[int]) -> InstanceData:
    priors = torch.from_numpy(boxes[owners]) + torch.linspace(-1, 1, len(owners))[:, None]
    return InstanceData(pos_priors=priors, pos_assigned_gt_inds=torch.tensor(owners, dtype=torch.long))


def head(cls: type[FCNMaskHead]) -> FCNMaskHead:
    return cls(num_convs=1, in_channels=4, conv_out_channels=4, num_classes=2)


TRAIN_CFG = ConfigDict(mask_size=28)


def test_mask_targets_of_a_batch_are_those_that_mmdets_head_makes_image_by_image() -> None:
    results, ours, peers = [], [], []
    for seed, owners in enumerate(([0, 2, 2, 1], [], [1, 0])):
        boxes, rhombi = squares(3, seed)
        results.append(sampled(boxes, owners))
        ours.append(InstanceData(masks=InstanceMasks(rhombi, 80, 80)))
        peers.append(InstanceData(masks=PolygonMasks([[r[0].reshape(-1)] for r in rhombi], 80, 80)))
    targets = head(BatchTargetMaskHead).get_targets(results, ours, TRAIN_CFG)
    wanted = head(FCNMaskHead).get_targets(results, peers, TRAIN_CFG)
    assert targets.shape == (6, 28, 28) and targets.dtype == torch.float32
    assert (targets != wanted).float().mean() < 2e-3
    assert torch.equal(head(BatchTargetMaskHead).get_targets(results, peers, TRAIN_CFG), targets)


def test_targets_of_boxes_that_leave_the_image_follow_the_boxes_and_leave_them_as_they_are() -> None:
    polygon = [np.array([[-10.0, 10], [30, 10], [30, 50], [-10, 50]])]
    result = InstanceData(pos_priors=torch.tensor([[-10.0, 10, 30, 50]]), pos_assigned_gt_inds=torch.tensor([0]))
    before = result.pos_priors.clone()
    instances = [InstanceData(masks=InstanceMasks([polygon], 64, 64))]
    assert head(BatchTargetMaskHead).get_targets([result], instances, TRAIN_CFG).all()
    assert torch.equal(result.pos_priors, before)


def test_images_of_different_sizes_or_with_mmdets_bitmaps_are_served_one_by_one() -> None:
    boxes, rhombi = squares(3, 0)
    result = sampled(boxes, [0, 1, 2])
    small, large = InstanceMasks(rhombi, 80, 80), InstanceMasks(rhombi, 96, 96)
    targets = head(BatchTargetMaskHead).get_targets(
        [result, result], [InstanceData(masks=small), InstanceData(masks=large)], TRAIN_CFG
    )
    assert torch.equal(targets[:3], targets[3:]) and targets.any()
    bitmaps = [InstanceData(masks=BitmapMasks(small.masks, 80, 80))]
    wanted = head(FCNMaskHead).get_targets([result], bitmaps, TRAIN_CFG)
    assert torch.equal(head(BatchTargetMaskHead).get_targets([result], bitmaps, TRAIN_CFG), wanted)


def test_a_batch_without_positive_boxes_has_no_targets() -> None:
    boxes, rhombi = squares(3, 0)
    targets = head(BatchTargetMaskHead).get_targets(
        [sampled(boxes, [])], [InstanceData(masks=InstanceMasks(rhombi, 80, 80))], TRAIN_CFG
    )
    assert targets.shape == (0, 28, 28)


def sample_once(cls: type[RandomSampler], seed: int) -> tuple[list[int], list[int]]:
    """Positive and negative indices of 16 samples from 10 positive and 500 negative boxes."""
    assigned = torch.cat((torch.ones(10, dtype=torch.long), torch.zeros(500, dtype=torch.long)))
    result = AssignResult(1, assigned, torch.zeros(510), labels=torch.zeros(510, dtype=torch.long))
    priors = InstanceData(priors=torch.rand(510, 4))
    truth = InstanceData(bboxes=torch.rand(1, 4), labels=torch.zeros(1, dtype=torch.long))
    torch.manual_seed(seed)
    taken = cls(num=16, pos_fraction=0.25, add_gt_as_proposals=False).sample(result, priors, truth)
    return taken.pos_inds.tolist(), taken.neg_inds.tolist()


def test_on_a_cpu_the_sampler_draws_what_mmdets_draws() -> None:
    for seed in range(3):
        assert sample_once(DeviceRandomSampler, seed) == sample_once(RandomSampler, seed)
    assert sample_once(DeviceRandomSampler, 0) != sample_once(DeviceRandomSampler, 1)


def test_every_candidate_is_as_likely() -> None:
    sampler = DeviceRandomSampler(num=4, pos_fraction=0.5)
    torch.manual_seed(0)
    gallery = torch.arange(10)
    drawn = torch.stack([sampler.random_choice(gallery, 3) for _ in range(3000)])
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    shares = drawn.flatten().bincount(minlength=10) / drawn.numel()
    assert (shares - 0.1).abs().max() < 0.015


class RecordDevices(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.devices.add(result.device.type)
        return result


def test_nothing_of_a_choice_is_made_elsewhere_than_where_the_boxes_are() -> None:
    devices = {}
    for cls in (DeviceRandomSampler, RandomSampler):
        with FakeTensorMode():
            gallery = torch.empty(1000, dtype=torch.long, device='cuda')
            with RecordDevices() as mode:
                cls(num=4, pos_fraction=0.5).random_choice(gallery, 3)
        devices[cls] = mode.devices
    assert devices == {DeviceRandomSampler: {'cuda'}, RandomSampler: {'cpu', 'cuda'}}


def test_too_few_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match='wanted 3 samples of 2 candidates'):
        DeviceRandomSampler(num=4, pos_fraction=0.5).random_choice(torch.arange(2), 3)
