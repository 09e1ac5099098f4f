"""Large-scale jitter equals mmdet's own steps, and masks kept in boxes act as bitmaps."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import PackDetInputs
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from pycocotools import mask as mask_codec

from addp_backbone.detection.boxed_masks import BoxedMasks, decode_segmentation
from addp_backbone.runtime.seeding import SampleIndex

SIZE = (64, 64)
HEIGHT_PX, WIDTH_PX = 50, 70
RATIOS = (0.1, 2.0)


@pytest.fixture(autouse=True)
def _mmdet_scope() -> None:
    init_default_scope('mmdet')


def stock_pipeline(
    size: tuple[int, int] = SIZE, ratios: tuple[float, float] = RATIOS, with_mask: bool = True
) -> Compose:
    return Compose(
        [
            dict(type='SeedAugmentation'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomResize', scale=size, ratio_range=ratios, keep_ratio=True),
            dict(
                type='RandomCrop', crop_type='absolute', crop_size=size, recompute_bbox=True, allow_negative_crop=True
            ),
            dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2), keep_empty=False),
            PackDetInputs(),
        ]
    )


def our_pipeline(size: tuple[int, int] = SIZE, ratios: tuple[float, float] = RATIOS, with_mask: bool = True) -> Compose:
    jitter = dict(type='LargeScaleJitter', scale=size, ratio_range=ratios, crop_size=size, with_mask=with_mask)
    return Compose([dict(type='SeedAugmentation'), jitter, PackDetInputs()])


def instance(mask: Any, bbox: list[float], label: int = 0, crowd: int = 0) -> dict[str, Any]:
    return dict(mask=mask, bbox=bbox, bbox_label=label, ignore_flag=crowd)


def random_sample(seed: int) -> dict[str, Any]:
    """A noisy image with polygons (some in parts, some past the border), a crowd, RLEs of both kinds, and a segmentation that is none."""
    rng = np.random.default_rng(seed)
    instances = []
    for label in range(4):
        parts = [rng.uniform((-8, -8), (WIDTH_PX + 8, HEIGHT_PX + 8), (5, 2)).round(1) for _ in range(1 + label % 2)]
        corners = np.concatenate(parts)
        box = [*np.clip(corners.min(0), 0, None).tolist(), *np.clip(corners.max(0), 0, (WIDTH_PX, HEIGHT_PX)).tolist()]
        instances.append(instance([part.reshape(-1).tolist() for part in parts], box, label))
    bitmap = np.zeros((HEIGHT_PX, WIDTH_PX), dtype=np.uint8, order='F')
    bitmap[20:30, 40:52] = rng.integers(0, 2, (10, 12))
    runs = np.diff(np.flatnonzero(np.diff(bitmap.T.reshape(-1), prepend=0, append=2)), prepend=0).tolist()
    rle = mask_codec.encode(bitmap)
    instances.append(instance(dict(size=rle['size'], counts=rle['counts'].decode()), [40, 20, 52, 30], 5, crowd=1))
    instances.append(instance(dict(size=[HEIGHT_PX, WIDTH_PX], counts=runs), [40, 20, 52, 30], 6))
    instances.append(instance([[1, 2, 3, 4]], [1, 2, 3, 4], 7))
    return sample_of(rng.integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8), instances if seed % 5 else [])


def sample_of(image: np.ndarray, instances: list[dict[str, Any]]) -> dict[str, Any]:
    shape = image.shape[:2]
    return dict(img=image, img_shape=shape, ori_shape=shape, img_id=1, img_path='a.jpg', instances=instances)


def assert_equal(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert torch.equal(got['inputs'], wanted['inputs'])
    ours, stock = got['data_samples'], wanted['data_samples']
    assert ours.metainfo == stock.metainfo
    for kind in ('gt_instances', 'ignored_instances'):
        a, b = getattr(ours, kind), getattr(stock, kind)
        assert sorted(a.keys()) == sorted(b.keys())
        assert torch.equal(a.bboxes.tensor, b.bboxes.tensor) and a.bboxes.tensor.dtype == b.bboxes.tensor.dtype
        assert torch.equal(a.labels, b.labels)
        if 'masks' in b:
            assert np.array_equal(a.masks.to_ndarray(), b.masks.to_ndarray()) and a.masks.to_ndarray().dtype == np.uint8


@pytest.mark.parametrize('with_mask', [True, False])
def test_it_equals_mmdets_steps_with_polygons_rles_crowds_and_empty_images(with_mask: bool) -> None:
    stock, ours = stock_pipeline(with_mask=with_mask), our_pipeline(with_mask=with_mask)
    num_objects = num_ignored = num_empty = 0
    for seed in range(30):
        sample = dict(random_sample(seed), sample_idx=SampleIndex(0, seed))
        wanted = stock(copy.deepcopy(sample))
        assert_equal(ours(sample), wanted)
        num_objects += len(wanted['data_samples'].gt_instances)
        num_ignored += len(wanted['data_samples'].ignored_instances)
        num_empty += not len(wanted['data_samples'].gt_instances)
    assert num_objects > 50 and num_ignored > 5 and num_empty > 5


def test_it_equals_mmdets_steps_on_photographs_at_1024_px(shared_dir: Path) -> None:
    dataset = dict(
        type='CocoDataset',
        data_root=str(shared_dir / 'data' / 'camvid'),
        ann_file='instances_train.json',
        data_prefix=dict(img='images/train/'),
        metainfo=dict(classes=('Car', 'Pedestrian', 'Bicyclist', 'SignSymbol')),
        indices=3,
        pipeline=[dict(type='LoadImageFromFile')],
    )
    from mmdet.datasets import CocoDataset

    photographs = CocoDataset(**{key: value for key, value in dataset.items() if key != 'type'})
    stock, ours = (make((1024, 1024), (0.1, 2.0)) for make in (stock_pipeline, our_pipeline))
    for index in range(3):
        sample = dict(photographs[index], sample_idx=SampleIndex(0, index))
        assert_equal(ours(copy.deepcopy(sample)), stock(sample))


def test_what_it_draws_follows_from_the_samples_seed_alone() -> None:
    pipeline = our_pipeline()
    images = []
    for seed in (3, 4, 3):
        images.append(pipeline(dict(random_sample(1), sample_idx=SampleIndex(0, seed)))['inputs'])
        np.random.random_sample(7)
    assert torch.equal(images[0], images[2]) and not (
        images[0].shape == images[1].shape and torch.equal(images[0], images[1])
    )


def test_a_polygon_is_drawn_as_pycocotools_draws_it_on_the_whole_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        polygons = [
            rng.uniform(-10, (width + 10, height + 10), (int(rng.integers(3, 8)), 2))
            .round(int(rng.integers(3)))
            .reshape(-1)
            .tolist()
            for _ in range(int(rng.integers(1, 3)))
        ]
        decoded = decode_segmentation(polygons, height, width)
        assert decoded is not None
        pixels, x, y = decoded
        image = np.zeros((height, width), dtype=np.uint8)
        image[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        assert np.array_equal(
            image, mask_codec.decode(mask_codec.merge(mask_codec.frPyObjects(polygons, height, width)))
        )


def test_objects_without_a_segmentation_are_refused_with_the_remedy() -> None:
    sample = sample_of(np.zeros((50, 70, 3), np.uint8), [dict(bbox=[0, 0, 70, 50], bbox_label=0, ignore_flag=0)])
    with pytest.raises(KeyError, match='with_mask=False'):
        our_pipeline()(sample)


def test_a_ratio_range_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r'ratio_range is \(2.0, 0.1\)'):
        TRANSFORMS.build(dict(type='LargeScaleJitter', scale=SIZE, ratio_range=(2.0, 0.1), crop_size=SIZE))


def boxed_and_bitmaps() -> tuple[BoxedMasks, BitmapMasks]:
    rng = np.random.default_rng(0)
    cutouts = [rng.integers(0, 2, shape, dtype=np.uint8) for shape in ((5, 7), (0, 0), (20, 30), (9, 2))]
    for cutout in cutouts:
        cutout[:1], cutout[:, :1], cutout[-1:], cutout[:, -1:] = 1, 1, 1, 1
    boxed = BoxedMasks(cutouts, np.array([(0, 0), (0, 0), (10, 4), (38, 15)]), 24, 40)
    return boxed, BitmapMasks(boxed.masks, 24, 40)


@pytest.mark.parametrize(
    'index', [2, slice(1, 3), np.array([3, 0]), np.array([True, False, False, True]), np.array([], dtype=np.int64)]
)
def test_boxed_masks_are_chosen_as_bitmaps_are(index: Any) -> None:
    boxed, bitmaps = boxed_and_bitmaps()
    assert isinstance(boxed[index], BoxedMasks) and np.array_equal(boxed[index].masks, bitmaps[index].masks)


def test_boxed_masks_give_what_bitmaps_give() -> None:
    boxed, bitmaps = boxed_and_bitmaps()
    assert len(boxed) == 4 and boxed.areas.tolist() == bitmaps.areas.tolist()
    assert torch.equal(boxed.get_bboxes('hbox').tensor, bitmaps.get_bboxes('hbox').tensor)
    assert np.array_equal(boxed.boxes(), bitmaps.get_bboxes('hbox').tensor.numpy())
    assert np.array_equal(boxed.pad((32, 64)).masks, bitmaps.pad((32, 64)).masks)
    assert np.array_equal(boxed.pad((32, 64), 1).masks, bitmaps.pad((32, 64), 1).masks)
    assert np.array_equal(BoxedMasks.cat([boxed, boxed[1:]]).masks, BitmapMasks.cat([bitmaps, bitmaps[1:]]).masks)
    assert np.array_equal(BoxedMasks.cat([boxed, bitmaps]).masks, BitmapMasks.cat([bitmaps, bitmaps]).masks)
    kept = InstanceData(masks=boxed)[torch.tensor([True, False, True, True])].masks
    assert np.array_equal(kept.masks, bitmaps.masks[[0, 2, 3]])


def test_mask_targets_are_those_of_bitmaps() -> None:
    rng = np.random.default_rng(1)
    boxed, bitmaps = boxed_and_bitmaps()
    corners = np.sort(rng.uniform(0, 1, (200, 2, 2)).astype(np.float32), axis=1) * np.array([40, 24], np.float32)
    boxes, owners = corners.reshape(-1, 4), rng.integers(0, 4, 200)
    for target in (boxes, torch.from_numpy(boxes)):
        soft, wanted = (
            masks.crop_and_resize(target, (7, 9), owners, binarize=False).masks for masks in (boxed, bitmaps)
        )
        np.testing.assert_allclose(soft, wanted, rtol=0, atol=1e-4)
    hard, wanted = (masks.crop_and_resize(boxes, (7, 9), owners).masks for masks in (boxed, bitmaps))
    assert hard.dtype == wanted.dtype == bool and (hard != wanted).mean() < 1e-3
    assert 0.1 < wanted.mean() < 0.9
    assert (
        len(boxed.crop_and_resize(boxes[:0], (7, 9), owners[:0]))
        == len(boxed[:0].crop_and_resize(boxes[:0], (7, 9), owners[:0]))
        == 0
    )


def test_a_sample_goes_to_another_process_with_its_objects_pixels_only() -> None:
    sample = our_pipeline((512, 512), (1.0, 1.0))(dict(random_sample(1), sample_idx=SampleIndex(0, 0)))['data_samples']
    bitmaps = sample.gt_instances.masks.masks
    sent = pickle.dumps(sample)
    assert len(sent) < 0.7 * bitmaps.nbytes
    received: DetDataSample = pickle.loads(sent)
    assert np.array_equal(received.gt_instances.masks.masks, bitmaps)


def test_the_recipes_training_pipeline_is_mmdets_lsj() -> None:
    config = Config.fromfile(Path(__file__).resolve().parents[3] / 'det_configs' / '_base_' / 'coco_lsj.py')
    steps = [step for step in config.train_pipeline if step.type != 'LoadImage']
    ours, stock = Compose(steps), stock_pipeline((1024, 1024))
    for seed in (1, 2):
        sample = dict(random_sample(seed), sample_idx=SampleIndex(0, seed))
        assert_equal(ours(copy.deepcopy(sample)), stock(sample))
