"""Masks kept as polygons or cut-outs act as bitmaps, and their targets are detectron2's."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from detectron2_lsj import mask_target, near_boxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData
from torch.utils._python_dispatch import TorchDispatchMode

from addp_backbone.detection.instance_masks import Cutout, InstanceMasks
from addp_backbone.detection.polygons import clip_polygons, rasterize_in_boxes

HEIGHT_PX, WIDTH_PX = 24, 40
CPU = torch.device('cpu')


def random_cutouts() -> list[Cutout]:
    """Three that fill their boxes, two of them at the image's edges, and an empty one."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 2, shape, dtype=np.uint8) for shape in ((5, 7), (0, 0), (20, 30), (9, 2))]
    for cutout in pixels:
        cutout[:1], cutout[:, :1], cutout[-1:], cutout[:, -1:] = 1, 1, 1, 1
    return [Cutout(p, x, y) for p, (x, y) in zip(pixels, ((0, 0), (0, 0), (10, 4), (38, 15)), strict=True)]


def random_polygons(num_objects: int = 6, seed: int = 0) -> list[list[np.ndarray]]:
    """Stars of one part or two within the image."""
    rng = np.random.default_rng(seed)
    return [[_star(rng) for _ in range(1 + index % 2)] for index in range(num_objects)]


def _star(rng: np.random.Generator) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 9, endpoint=False)
    radii = rng.uniform(2, 6, 9)
    return rng.uniform((6, 6), (WIDTH_PX - 6, HEIGHT_PX - 6)) + radii[:, None] * np.stack(
        (np.cos(angles), np.sin(angles)), axis=1
    )


def masks_of(objects: list[Any]) -> InstanceMasks:
    return InstanceMasks(objects, HEIGHT_PX, WIDTH_PX)


def mixed() -> InstanceMasks:
    return masks_of([*random_cutouts(), *random_polygons(3)])


@pytest.mark.parametrize(
    'index', [2, slice(1, 6), np.array([3, 0, 5]), np.arange(7) % 3 == 0, np.array([], dtype=np.int64)]
)
def test_objects_are_chosen_as_bitmaps_are(index: Any) -> None:
    masks = mixed()
    bitmaps = BitmapMasks(masks.masks, HEIGHT_PX, WIDTH_PX)
    assert isinstance(masks[index], InstanceMasks) and np.array_equal(masks[index].masks, bitmaps[index].masks)


def test_they_give_what_bitmaps_give() -> None:
    masks = mixed()
    bitmaps = BitmapMasks(masks.masks, HEIGHT_PX, WIDTH_PX)
    assert len(masks) == 7 and masks.areas.tolist() == bitmaps.areas.tolist()
    assert torch.equal(masks.get_bboxes('hbox').tensor, bitmaps.get_bboxes('hbox').tensor)
    assert np.array_equal(masks.pad((32, 64)).masks, bitmaps.pad((32, 64)).masks)
    assert np.array_equal(masks.pad((32, 64), 1).masks, bitmaps.pad((32, 64), 1).masks)
    assert np.array_equal(InstanceMasks.cat([masks, masks[1:]]).masks, BitmapMasks.cat([bitmaps, bitmaps[1:]]).masks)
    assert np.array_equal(InstanceMasks.cat([masks, bitmaps]).masks, BitmapMasks.cat([bitmaps, bitmaps]).masks)
    kept = InstanceData(masks=masks)[torch.arange(7) % 2 == 0].masks
    assert np.array_equal(kept.masks, bitmaps.masks[::2])


def test_bitmaps_of_polygons_are_mmdets() -> None:
    polygons = random_polygons()
    flat = [[part.reshape(-1) for part in item] for item in polygons]
    assert np.array_equal(masks_of(polygons).masks, PolygonMasks(flat, HEIGHT_PX, WIDTH_PX).to_ndarray())


def test_boxes_are_the_extents_of_vertices_and_pixels() -> None:
    masks = masks_of([random_cutouts()[2], [np.array([[1.5, 2], [7.25, 3], [4, 9]]), np.array([[0.5, 5]] * 3)], []])
    assert masks.boxes().tolist() == [[10, 4, 40, 24], [0.5, 2, 7.25, 9], [0, 0, 0, 0]]


def test_targets_of_polygons_are_detectron2s_one_by_one() -> None:
    rng = np.random.default_rng(1)
    masks = masks_of(random_polygons())
    owners = rng.integers(0, 6, 100)
    boxes = near_boxes(masks.boxes()[owners], rng)
    boxes[:2, 2:] = boxes[:2, :2] + 0.01  # detectron2 takes a side for no less than 0.1 px
    targets = masks.targets(boxes, owners, (28, 28), CPU).numpy()
    wanted = np.stack([mask_target(masks.objects[o], box, 28) for o, box in zip(owners, boxes, strict=True)])
    assert np.array_equal(targets, wanted) and 0.1 < wanted.mean() < 0.9


def test_targets_of_polygons_are_those_of_mmdets_polygon_masks() -> None:
    rng = np.random.default_rng(2)
    polygons = random_polygons()
    peer = PolygonMasks([[part.reshape(-1) for part in item] for item in polygons], HEIGHT_PX, WIDTH_PX)
    owners = rng.integers(0, 6, 50)
    boxes = near_boxes(masks_of(polygons).boxes()[owners], rng)
    wanted = peer.crop_and_resize(boxes, (14, 28), owners).to_ndarray()
    assert (masks_of(polygons).targets(boxes, owners, (14, 28), CPU).numpy() != wanted).mean() < 1e-3


def test_an_object_without_polygons_has_an_empty_target() -> None:
    polygons = [[], *random_polygons(2), []]
    boxes = np.tile(np.array([[0, 0, WIDTH_PX, HEIGHT_PX]], np.float32), (4, 1))
    filled = rasterize_in_boxes(polygons, boxes, (28, 28)).any(axis=(1, 2))
    assert filled.tolist() == [False, True, True, False]
    assert not rasterize_in_boxes([[], []], boxes[:2], (28, 28)).any()


def test_targets_of_cutouts_are_those_of_bitmaps_up_to_the_images_edges() -> None:
    rng = np.random.default_rng(1)
    masks = masks_of(random_cutouts())
    bitmaps = BitmapMasks(masks.masks, HEIGHT_PX, WIDTH_PX)
    corners = np.sort(rng.uniform(0, 1, (300, 2, 2)), axis=1) * (WIDTH_PX, HEIGHT_PX)
    boxes, owners = corners.reshape(-1, 4).astype(np.float32), rng.integers(0, 4, 300)
    for given in (boxes, torch.from_numpy(boxes)):
        targets = masks.crop_and_resize(given, (7, 9), owners).masks
        wanted = bitmaps.crop_and_resize(given, (7, 9), owners).masks
        assert targets.dtype == wanted.dtype == bool and (targets != wanted).mean() < 1e-3
    assert 0.05 < wanted.mean() < 0.95


def test_at_every_edge_of_the_image_targets_of_cutouts_are_those_of_bitmaps() -> None:
    """A mask of single pixels, and boxes of two pixels: interpolation beyond the last centres decides."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 2, (8, 8), dtype=np.uint8)
    pixels[[0, -1]], pixels[:, [0, -1]] = [1, 0] * 4, np.array([[1, 0] * 4] * 2).T
    masks = InstanceMasks([Cutout(pixels, 0, 0)], 8, 8)
    bitmaps = BitmapMasks(pixels[None], 8, 8)
    for x, y in ((0, 3), (6, 3), (3, 0), (3, 6)):
        boxes = np.array([[x, y, x + 2, y + 2]], np.float32)
        wanted = bitmaps.crop_and_resize(boxes, (28, 28), np.array([0])).masks
        assert np.array_equal(masks.crop_and_resize(boxes, (28, 28), np.array([0])).masks, wanted)


def test_boxes_that_leave_the_image_see_what_they_see_of_bitmaps() -> None:
    rng = np.random.default_rng(2)
    sides = rng.integers(1, (13, 17), (6, 2))
    sides[0] = 13, 17  # the whole image
    corners = [(int(rng.integers(14 - h)), int(rng.integers(18 - w))) for h, w in sides]
    cutouts = [
        Cutout(rng.integers(0, 2, size, dtype=np.uint8), x, y) for size, (y, x) in zip(sides, corners, strict=True)
    ]
    masks = InstanceMasks(cutouts, 13, 17)
    boxes = np.sort(rng.uniform(-5, 22, (200, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
    owners = rng.integers(0, 6, 200)
    wanted = BitmapMasks(masks.masks, 13, 17).crop_and_resize(boxes, (9, 7), owners).masks
    assert np.array_equal(masks.crop_and_resize(boxes, (9, 7), owners).masks, wanted)


def test_targets_of_both_kinds_together_are_those_of_each_alone() -> None:
    rng = np.random.default_rng(3)
    masks = mixed()
    owners = rng.integers(0, 7, 60)
    boxes = rng.uniform(0, 20, (60, 4)).astype(np.float32) + np.array([0, 0, 4, 4], np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    together = masks.targets(boxes, owners, (28, 28), CPU)
    for index in range(60):
        alone = masks[owners[index]].targets(boxes[index : index + 1], np.array([0]), (28, 28), CPU)
        assert torch.equal(together[index], alone[0])


class CountOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_tensor_operations_do_not_grow_with_objects_or_boxes() -> None:
    counts = {}
    for num in (2, 40):
        objects = [*random_polygons(num), *(random_cutouts()[index % 2 * 2] for index in range(num))]
        owners = np.arange(2 * num).repeat(3)
        boxes = np.tile(np.array([[1, 1, 20, 20]], np.float32), (len(owners), 1))
        with CountOperations() as mode:
            masks_of(objects).targets(boxes, owners, (28, 28), CPU)
        counts[num] = mode.count
    assert counts[2] == counts[40] <= 12


def test_targets_between_0_and_1_are_refused_with_the_option_to_leave_out() -> None:
    with pytest.raises(ValueError, match='soft_mask_target'):
        mixed().crop_and_resize(np.zeros((1, 4), np.float32), (28, 28), np.array([0]), binarize=False)


def test_polygons_go_to_another_process_as_their_vertices() -> None:
    masks = InstanceMasks(random_polygons(20), 1024, 1024)
    sent = pickle.dumps(masks)
    assert len(sent) < 20_000
    assert np.array_equal(pickle.loads(sent).masks, masks.masks)


def test_clipping_keeps_a_valid_polygon_inside_the_window_as_it_is() -> None:
    polygon = np.array([[1.0, 1], [5, 1], [5, 5]])
    (kept,) = clip_polygons([polygon], (0, 0, 10, 10))
    assert len(kept) == 1 and kept[0] is polygon


def test_clipping_can_split_a_polygon() -> None:
    fork = np.array([[0.0, 0], [10, 0], [10, 10], [8, 10], [8, 2], [2, 2], [2, 10], [0, 10]])
    (parts,) = clip_polygons([fork], (0, 4, 20, 20))
    assert sorted(part[:, 0].min() for part in parts) == [0, 8]
    assert all(np.ptp(part, axis=0).tolist() == [2, 6] for part in parts)


def test_clipping_nothing_gives_nothing() -> None:
    assert clip_polygons([], (0, 0, 1, 1)) == []
    assert clip_polygons([np.array([[5.0, 5], [6, 5], [6, 6]])], (0, 0, 1, 1)) == [[]]
