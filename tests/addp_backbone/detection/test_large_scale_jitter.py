"""Large-scale jitter gives what detectron2's gives: draws, pixels, boxes, polygons and bitmaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2_lsj import Jittered, extents, jitter, mask_target, near_boxes
from mmdet.datasets.transforms import PackDetInputs
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_masks

from addp_backbone.detection.ground_truth import sample_centres
from addp_backbone.detection.instance_masks import Cutout
from addp_backbone.detection.large_scale_jitter import LargeScaleJitter
from addp_backbone.runtime.seeding import SampleIndex

SIZE = (64, 64)
HEIGHT_PX, WIDTH_PX = 50, 70
RATIOS = (0.1, 2.0)


@pytest.fixture(autouse=True)
def _mmdet_scope() -> None:
    init_default_scope('mmdet')


def instance(mask: Any, label: int = 0, crowd: int = 0, bbox: tuple[float, ...] = (0, 0, 1, 1)) -> dict[str, Any]:
    return dict(mask=mask, bbox=list(bbox), bbox_label=label, ignore_flag=crowd)


def random_polygon(rng: np.random.Generator) -> list[float]:
    """Five vertices in any order, so that edges cross; some lie outside the image."""
    return rng.uniform((-8, -8), (WIDTH_PX + 8, HEIGHT_PX + 8), (5, 2)).round(1).reshape(-1).tolist()


def random_rle(rng: np.random.Generator, compressed: bool) -> dict[str, Any]:
    bitmap = np.zeros((HEIGHT_PX, WIDTH_PX), dtype=np.uint8, order='F')
    bitmap[20:30, 40:52] = rng.integers(0, 2, (10, 12))
    runs = np.diff(np.flatnonzero(np.diff(bitmap.T.reshape(-1), prepend=0, append=2)), prepend=0).tolist()
    rle = coco_masks.encode(bitmap)
    return dict(size=rle['size'], counts=rle['counts'].decode() if compressed else runs)


def random_sample(seed: int) -> dict[str, Any]:
    """Noise with polygons of one and two parts, a crowd, RLEs of both kinds, and a segmentation of two vertices."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    instances = [instance([random_polygon(rng) for _ in range(1 + label % 2)], label) for label in range(4)]
    instances += [
        instance(random_rle(rng, True), 5, crowd=1),
        instance(random_rle(rng, False), 6),
        instance([[1, 2, 3, 4]], 7),
        instance(random_rle(rng, True), 8),
    ]
    return sample_of(image, instances if seed % 5 else [])


def sample_of(image: np.ndarray, instances: list[dict[str, Any]]) -> dict[str, Any]:
    shape = image.shape[:2]
    return dict(img=image, img_shape=shape, ori_shape=shape, img_id=1, img_path='a.jpg', instances=instances)


def jitter_of(size: tuple[int, int] = SIZE, ratios: tuple[float, float] = RATIOS, **options: Any) -> LargeScaleJitter:
    return LargeScaleJitter(scale=size, ratio_range=ratios, crop_size=size, **options)


def assert_equal(ours: dict[str, Any], wanted: Jittered) -> None:
    """The image within a grey level; objects, boxes and masks equal, but for the crowd that only ours has."""
    assert ours['img'].shape == wanted.image.shape and ours['img_shape'] == wanted.image.shape[:2]
    assert np.abs(ours['img'].astype(int) - wanted.image).max() <= 1
    counted = np.flatnonzero(~ours['gt_ignore_flags'])
    assert ours['gt_bboxes_labels'][counted].tolist() == wanted.labels
    np.testing.assert_allclose(
        ours['gt_bboxes'].tensor.numpy()[counted], np.reshape(wanted.boxes, (-1, 4)), rtol=0, atol=1e-4
    )
    for index, mask in zip(counted, wanted.masks, strict=True):
        item = ours['gt_masks'].objects[index]
        if isinstance(item, Cutout):
            assert np.array_equal(ours['gt_masks'][index].masks[0], mask)
        else:
            assert len(item) == len(mask)
            box = extents(mask)
            assert np.array_equal(mask_target(item, box, 28), mask_target(mask, box, 28))


@pytest.mark.parametrize('flip_prob', [0, 1])
@pytest.mark.parametrize('ratio', [0.1, 0.2, 0.5, 1, 2])
def test_at_every_ratio_it_gives_what_detectron2_gives(ratio: float, flip_prob: float) -> None:
    num_polygons = num_cutouts = 0
    for seed in range(1, 12):
        sample = random_sample(seed)
        np.random.seed(seed)
        wanted = jitter(sample['img'], sample['instances'], SIZE, (ratio, ratio), flip_prob)
        np.random.seed(seed)
        ours = jitter_of(ratios=(ratio, ratio), flip_prob=flip_prob)(sample)
        assert_equal(ours, wanted)
        num_polygons += sum(isinstance(mask, list) for mask in wanted.masks)
        num_cutouts += sum(isinstance(mask, np.ndarray) for mask in wanted.masks)
    assert num_polygons > 20 and num_cutouts > 5


def test_it_draws_what_detectron2_draws_from_the_same_generator() -> None:
    sizes = set()
    for seed in range(60):
        sample = random_sample(seed)
        np.random.seed(seed)
        wanted = jitter(sample['img'], sample['instances'], SIZE, RATIOS)
        following = np.random.uniform()
        np.random.seed(seed)
        assert_equal(jitter_of()(sample), wanted)
        assert np.random.uniform() == following
        sizes.add(wanted.image.shape)
    assert len(sizes) > 20


@pytest.mark.parametrize('ratio', [0.1, 0.2, 0.5, 1, 2])
def test_on_photographs_boxes_and_mask_targets_are_detectron2s(shared_dir: Path, ratio: float) -> None:
    from mmdet.datasets import CocoDataset

    photographs = CocoDataset(
        data_root=str(shared_dir / 'data' / 'camvid'),
        ann_file='instances_train.json',
        data_prefix=dict(img='images/train/'),
        metainfo=dict(classes=('Car', 'Pedestrian', 'Bicyclist', 'SignSymbol')),
        indices=2,
        pipeline=[dict(type='LoadImageFromFile')],
    )
    rng = np.random.default_rng(0)
    boxes, wanted_boxes, differing = [], [], []
    for index in range(2):
        sample = photographs[index]
        np.random.seed(index)
        wanted = jitter(sample['img'], sample['instances'], (1024, 1024), (ratio, ratio), index % 2)
        np.random.seed(index)
        ours = jitter_of((1024, 1024), (ratio, ratio), flip_prob=index % 2)(sample)
        assert np.abs(ours['img'].astype(int) - wanted.image).max() <= 1
        assert ours['gt_bboxes_labels'].tolist() == wanted.labels
        boxes.append(ours['gt_bboxes'].tensor.numpy())
        wanted_boxes.append(np.array(wanted.boxes))
        proposals = near_boxes(wanted_boxes[-1], rng)
        targets = ours['gt_masks'].targets(proposals, np.arange(len(proposals)), (28, 28), torch.device('cpu')).numpy()
        for target, mask, box in zip(targets, wanted.masks, proposals, strict=True):
            differing.append((target != mask_target(mask, box, 28)).mean())
    got, wanted_all = np.concatenate(boxes), np.concatenate(wanted_boxes)
    shared = np.minimum(got[:, 2:], wanted_all[:, 2:]) - np.maximum(got[:, :2], wanted_all[:, :2])
    areas = (got[:, 2:] - got[:, :2]).prod(axis=1) + (wanted_all[:, 2:] - wanted_all[:, :2]).prod(axis=1)
    iou = shared.prod(axis=1) / (areas - shared.prod(axis=1))
    assert np.median(iou) >= 0.999 and np.abs((got - wanted_all).mean(axis=0)).max() < 0.02
    assert np.mean(differing) <= 0.005


def test_rle_is_sampled_where_pillow_samples() -> None:
    for length in (1, 2, 7, 30, 480, 481, 641):
        for new_length in (1, 3, 7, 30, 333, 480, 1000):
            row = Image.fromarray(np.arange(length, dtype=np.int32)[None])
            wanted = np.asarray(row.resize((new_length, 1), Image.Resampling.NEAREST))[0]
            assert np.array_equal(sample_centres(new_length, length), wanted)


def test_a_mask_in_rle_stays_on_its_content() -> None:
    """A bright rectangle and its mask: after any enlarging their centres agree but for the mask's whole pixels."""
    rng = np.random.default_rng(0)
    offsets = []
    for seed in range(100):
        x, y = rng.integers(0, 40, 2)
        bitmap = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8, order='F')
        bitmap[y : y + 20, x : x + 20] = 1
        rle = coco_masks.encode(bitmap)
        image = np.repeat(bitmap[:, :, None] * np.uint8(200), 3, axis=2)
        np.random.seed(seed)
        step = jitter_of((256, 256), (0.5, 1.0))
        result = step(sample_of(image, [instance(dict(size=rle['size'], counts=rle['counts'].decode()))]))
        seen, mask = result['img'][:, :, 0].astype(float), result['gt_masks'].masks[0].astype(float)
        grid = np.stack(np.meshgrid(np.arange(mask.shape[1]), np.arange(mask.shape[0])), axis=-1)
        centres = [(grid * weight[:, :, None]).sum(axis=(0, 1)) / weight.sum() for weight in (seen, mask)]
        offsets.append(centres[1] - centres[0])
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.05  # sampled at a pixel's edge it was 0.3


def test_an_object_outside_the_window_is_dropped_and_one_that_only_touches_it_too() -> None:
    inside, outside = [10, 10, 30, 10, 30, 30, 10, 30], [80, 0, 90, 0, 90, 9]
    touching = [64, 5, 70, 5, 70, 9, 64, 9]
    sample = sample_of(
        np.zeros((64, 128, 3), np.uint8), [instance([m], i) for i, m in enumerate((outside, inside, touching))]
    )
    result = LargeScaleJitter((128, 128), (1.0, 1.0), (64, 64), flip_prob=0)
    np.random.seed(0)  # the corner is at an offset drawn below
    geometry = result._draw(64, 128)
    np.random.seed(0)
    kept = result(sample)['gt_bboxes_labels'].tolist()
    wanted = [i for i, m in enumerate((outside, inside, touching)) if _area_in(m, geometry.corner[0]) > 0]
    assert kept == wanted and len(kept) < 3


def _area_in(rectangle: list[int], left: int) -> float:
    xs = rectangle[0::2]
    return min(max(xs), left + 64) - max(min(xs), left)


def test_an_image_that_lost_all_objects_stays_as_a_negative() -> None:
    sample = sample_of(np.zeros((50, 70, 3), np.uint8), [instance([[80, 0, 90, 0, 90, 9]])])
    result = PackDetInputs()(jitter_of((70, 70), (1.0, 1.0), flip_prob=0)(sample))
    assert len(result['data_samples'].gt_instances) == 0 and result['inputs'].shape == (3, 50, 70)


def test_a_polygon_that_crosses_itself_is_mended_as_detectron2_mends_it() -> None:
    bow_tie = [10.0, 10, 40, 40, 40, 10, 10, 40]
    sample = sample_of(np.zeros((64, 64, 3), np.uint8), [instance([bow_tie])])
    wanted = jitter(sample['img'], sample['instances'], SIZE, (1, 1), 0)
    ours = jitter_of(ratios=(1, 1), flip_prob=0)(sample)
    assert len(wanted.masks[0]) > 0
    assert_equal(ours, wanted)


def test_a_crowd_stays_as_an_ignored_object() -> None:
    rng = np.random.default_rng(0)
    sample = sample_of(np.zeros((50, 70, 3), np.uint8), [instance(random_rle(rng, True), 5, crowd=1)])
    packed = PackDetInputs()(jitter_of(ratios=(1, 1))(sample))['data_samples']
    assert len(packed.gt_instances) == 0 and packed.ignored_instances.labels.tolist() == [5]


@pytest.mark.parametrize('flip_prob', [0, 1])
def test_without_masks_boxes_are_flipped_scaled_and_clipped_to_the_image(flip_prob: float) -> None:
    sample = sample_of(np.zeros((40, 80, 3), np.uint8), [dict(bbox=[-4, 10, 60, 44], bbox_label=1, ignore_flag=0)])
    result = jitter_of((160, 160), (1, 1), flip_prob=flip_prob, with_mask=False)(sample)
    assert result['gt_bboxes'].tensor.tolist() == [[40, 20, 160, 80] if flip_prob else [0, 20, 120, 80]]
    assert 'gt_masks' not in result


def test_what_it_draws_follows_from_the_samples_seed_alone() -> None:
    pipeline = Compose([dict(type='SeedAugmentation'), jitter_of(), PackDetInputs()])
    images = []
    for seed in (3, 4, 3):
        images.append(pipeline(dict(random_sample(1), sample_idx=SampleIndex(0, seed)))['inputs'])
        np.random.random_sample(7)
    assert torch.equal(images[0], images[2]) and not (
        images[0].shape == images[1].shape and torch.equal(images[0], images[1])
    )


def test_the_recipes_training_pipeline_is_detectron2s() -> None:
    config = Config.fromfile(Path(__file__).resolve().parents[3] / 'det_configs' / '_base_' / 'coco_lsj.py')
    steps = [step for step in config.train_pipeline if step.type == 'LargeScaleJitter']
    ours = TRANSFORMS.build(steps[0])
    for seed in (1, 2):
        sample = random_sample(seed)
        np.random.seed(seed)
        wanted = jitter(sample['img'], sample['instances'], (1024, 1024), (0.1, 2.0))
        np.random.seed(seed)
        assert_equal(ours(sample), wanted)


def test_objects_without_a_segmentation_are_refused_with_the_remedy() -> None:
    sample = sample_of(np.zeros((50, 70, 3), np.uint8), [dict(bbox=[0, 0, 70, 50], bbox_label=0, ignore_flag=0)])
    with pytest.raises(KeyError, match=r'a.jpg: .*with_mask=False'):
        jitter_of()(sample)


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        ([[1, 2, float('nan'), 4, 5, 6]], 'a.jpg: a polygon has a coordinate that is nan'),
        (dict(size=[70, 50], counts=[0, 3500]), r'a.jpg: an RLE is of size \[70, 50\], but its image has height 50'),
        (dict(size=[50, 70]), 'a.jpg: a segmentation is a dict, wanted polygons, or RLE with counts and size'),
    ],
)
def test_segmentations_that_are_not_usable_are_refused_with_the_images_name(mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jitter_of()(sample_of(np.zeros((50, 70, 3), np.uint8), [instance(mask)]))


def test_a_ratio_range_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r'ratio_range is \(2.0, 0.1\)'):
        TRANSFORMS.build(dict(type='LargeScaleJitter', scale=SIZE, ratio_range=(2.0, 0.1), crop_size=SIZE))
