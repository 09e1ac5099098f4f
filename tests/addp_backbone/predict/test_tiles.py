"""Large images in tiles: every object once, whatever border cuts it; class maps from the nearest tile."""

from __future__ import annotations

import json
import runpy
import weakref
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from small_exports import save, write_detector, write_segmentor
from torchvision.ops import batched_nms, box_iou

from addp_backbone.datasets.palette import class_palette
from addp_backbone.files.run_length import encode_mask
from addp_backbone.predict.class_info import ClassInfo
from addp_backbone.predict.class_results import ClassMap, ClassRanking
from addp_backbone.predict.detections import Detections
from addp_backbone.predict.predictor import Predictor
from addp_backbone.predict.tiles import Tiles, merge_detections, predict_in_tiles

MAIN = runpy.run_path(str(Path(__file__).parents[3] / 'tools' / 'predict.py'))['main']
CLASSES = ClassInfo(('disc', 'box'), tuple(class_palette(2)))
HEIGHT, WIDTH, SIZE = 300, 420, 128  # tiles begin at 0, 96, 172 and at 0, 96, 192, 288, 292 with an overlap of 32
OBJECTS = {  # x1, y1, x2, y2 -> label
    (10, 10, 30, 40): 0,  # within one tile
    (100, 20, 120, 40): 0,  # within the overlap of two
    (110, 50, 150, 80): 0,  # cut by one border, whole in the next tile
    (85, 85, 135, 135): 1,  # on the corner of four tiles, whole in none
    (150, 150, 410, 160): 0,  # longer than a tile
    (200, 165, 210, 290): 0,  # on a horizontal border
    (212, 165, 222, 290): 0,  # beside it
    (215, 30, 230, 45): 1,  # in the overlap, of two classes
    (300, 10, 419, 140): 1,  # nearly a tile
    (290, 200, 400, 299): 1,
}


def scene() -> np.ndarray:
    """(HEIGHT, WIDTH, 3): the number of each object, from 1, in every channel."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(OBJECTS, 1):
        pixels[y1:y2, x1:x2] = number
    return pixels


def find_objects(pixels: np.ndarray, path: str) -> Detections:
    """A perfect detector: every object as far as it is visible, the surer the more is visible."""
    height, width = pixels.shape[:2]
    boxes, scores, labels, masks = [], [], [], []
    for number in np.unique(pixels[pixels > 0]):
        mask = pixels[..., 0] == number
        rows, columns = np.nonzero(mask)
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        scores.append(0.5 + mask.sum() / 1e5)
        labels.append(list(OBJECTS.values())[number - 1])
        masks.append(encode_mask(mask))
    return Detections(
        width,
        height,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        masks,
        CLASSES,
    )


@pytest.mark.parametrize('with_whole', [True, False])
@pytest.mark.parametrize('overlap', [0.1, 0.25, 0.5])
def test_every_object_is_found_once_whole_whatever_borders_cut_it(overlap: float, with_whole: bool) -> None:
    found = predict_in_tiles(find_objects, scene(), '', Tiles(SIZE, overlap, with_whole))
    assert isinstance(found, Detections) and (found.width, found.height) == (WIDTH, HEIGHT)
    assert {tuple(map(int, box)): int(label) for box, label in zip(found.boxes, found.labels, strict=True)} == OBJECTS
    assert len(found.scores) == len(OBJECTS) and (np.diff(found.scores) <= 0).all()
    assert found.masks is not None
    for box, code in zip(found.boxes.astype(int), found.masks, strict=True):
        expected = np.zeros((HEIGHT, WIDTH), bool)
        expected[box[1] : box[3], box[0] : box[2]] = True
        assert np.array_equal(coco_masks.decode(code), expected)


def test_detections_that_no_border_cuts_are_merged_by_nms_per_class_as_torchvision_does() -> None:
    rng = np.random.default_rng(0)
    windows = [(0, 0, 400, 400), (300, 0, 700, 400)]
    found = []
    for x, *_ in windows:
        corners = rng.uniform(20, 250, (200, 2)) + np.array([x, 0])
        boxes = np.concatenate((corners, corners + rng.uniform(30, 120, (200, 2))), axis=1).astype(np.float32)
        scores, labels = rng.random(200).astype(np.float32), rng.integers(0, 2, 200)
        found.append(Detections(700, 400, boxes, scores, labels, None, CLASSES))
    merged = merge_detections(list(zip(windows, found, strict=True)), Tiles(400, 0.25))
    boxes, scores, labels = (
        torch.from_numpy(np.concatenate([getattr(one, name) for one in found]))
        for name in ('boxes', 'scores', 'labels')
    )
    kept = batched_nms(boxes, scores, labels, 0.5)
    assert len(kept) < 300
    assert np.array_equal(merged.boxes, boxes[kept].numpy()) and np.array_equal(merged.labels, labels[kept].numpy())


def merged_by_loops(found: list[tuple[Any, Detections]], size_px: int, iou_thr: float) -> list[tuple[float, ...]]:
    """What :mod:`addp_backbone.predict.tiles` states, one pair of boxes after the other."""
    image = found[0][1]
    edges = (0, 0, image.width, image.height)
    entries = [
        (w, b.astype(float), float(s), int(k))
        for w, d in found
        for b, s, k in zip(d.boxes, d.scores, d.labels, strict=True)
    ]

    def is_cut(entry: Any) -> bool:
        return any(
            abs(value - side) <= 0.01 * size_px and side != edge
            for value, side, edge in zip(entry[1], entry[0], edges, strict=True)
        )

    def iou(a: Any, b: Any, clip: bool) -> float:
        boxes = [a[1].copy(), b[1].copy()]
        if clip:
            if a[0] == b[0]:
                return 0.0
            for box in boxes:
                box[:2] = np.maximum(box[:2], np.maximum(a[0][:2], b[0][:2]))
                box[2:] = np.minimum(box[2:], np.minimum(a[0][2:], b[0][2:]))
            if any((box[2:] <= box[:2]).any() for box in boxes):
                return 0.0
        return float(box_iou(torch.from_numpy(boxes[0])[None], torch.from_numpy(boxes[1])[None]))

    entries.sort(key=lambda entry: -entry[2])
    kept: list[Any] = []
    for one in entries:
        if not is_cut(one) and not any(iou(one, other, False) > iou_thr for other in kept if other[3] == one[3]):
            kept.append(one)
    parts = [
        one
        for one in entries
        if is_cut(one) and not any(iou(one, other, True) > iou_thr for other in kept if other[3] == one[3])
    ]
    groups = [{index} for index in range(len(parts))]
    for i, j in combinations(range(len(parts)), 2):
        if parts[i][3] == parts[j][3] and iou(parts[i], parts[j], True) > iou_thr:
            united = next(g for g in groups if i in g) | next(g for g in groups if j in g)
            groups = [g for g in groups if not g & united] + [united]
    results = [(*one[1], one[2], one[3]) for one in kept]
    for group in groups:
        boxes = np.array([parts[i][1] for i in group])
        best = max(parts[i][2] for i in group)
        results.append((*boxes[:, :2].min(0), *boxes[:, 2:].max(0), best, parts[min(group)][3]))
    return sorted(results, key=lambda result: -result[4])


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    config = write_detector(tmp_path_factory.mktemp('detector'))
    return config, save(config)


def test_whole_and_cut_detections_are_merged_as_a_loop_over_pairs_of_boxes_merges_them() -> None:
    rng = np.random.default_rng(0)
    tiles, objects = Tiles(96, 0.4), rng.uniform(0, 120, (25, 2))
    objects = np.concatenate((objects, objects + rng.uniform(8, 70, (25, 2))), axis=1)
    found = []
    for window in [*tiles.windows(152, 176), (0, 0, 176, 152)]:
        boxes = objects.repeat(2, axis=0) + rng.normal(0, 1.5, (50, 4))  # two guesses at each object
        boxes = np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2)).astype(np.float32)
        boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > 2).all(axis=1)]
        scores = rng.random(len(boxes)).astype(np.float32)
        labels = rng.integers(0, 2, len(boxes))
        found.append((window, Detections(176, 152, boxes, scores, labels, None, CLASSES)))
    result, expected = merge_detections(found, tiles), merged_by_loops(found, 96, 0.5)
    assert len(expected) < sum(len(one.scores) for _, one in found) / 2
    found_values = np.concatenate((result.boxes, result.scores[:, None], result.labels[:, None]), axis=1)
    np.testing.assert_allclose(found_values, np.array(expected), rtol=1e-6)


def test_a_detector_looks_at_every_tile_and_the_whole_image(detector: tuple[Path, Path]) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    pixels = blocks.repeat(8, axis=0).repeat(8, axis=1)  # 128 x 160
    predictor = Predictor(*detector, device='cpu')
    found = [((0, 0, 160, 128), predictor(pixels))]
    for y, x in product((0, 32), (0, 64)):
        part = predictor(np.ascontiguousarray(pixels[y : y + 96, x : x + 96]))
        boxes = part.boxes + np.array([x, y, x, y], np.float32)
        found.append(
            ((x, y, x + 96, y + 96), Detections(160, 128, boxes, part.scores, part.labels, None, part.classes))
        )
    predictor.tiles = Tiles(96, 1 / 3)
    result, expected = predictor(pixels), merged_by_loops(found, 96, 0.5)
    found_values = np.concatenate((result.boxes, result.scores[:, None], result.labels[:, None]), axis=1)
    np.testing.assert_allclose(found_values, np.array(expected), rtol=1e-6)
    assert result.at_limit and result.masks is not None and coco_masks.decode(result.masks[0]).shape == (128, 160)


def test_a_class_map_takes_each_pixel_from_the_tile_whose_centre_is_nearest() -> None:
    tiles, (height, width) = Tiles(64, 0.25), (150, 203)
    pixels = np.zeros((height, width, 3), np.uint8)
    windows = tiles.windows(height, width)
    count = iter(range(len(windows)))

    def predict(crop: np.ndarray, path: str) -> ClassMap:
        return ClassMap(64, 64, np.full(crop.shape[:2], next(count), np.uint8), CLASSES)

    found = predict_in_tiles(predict, pixels, '', tiles)
    assert isinstance(found, ClassMap)
    for y, x in product(range(height), range(width)):
        covering = [i for i, (x1, y1, x2, y2) in enumerate(windows) if x1 <= x < x2 and y1 <= y < y2]
        distance = {i: (abs(x + 0.5 - windows[i][0] - 32), abs(y + 0.5 - windows[i][1] - 32)) for i in covering}
        nearest = [min(d[axis] for d in distance.values()) for axis in (0, 1)]
        assert distance[int(found.label_map[y, x])] == tuple(nearest)


def test_a_segmentor_runs_in_tiles_and_an_image_of_one_tile_is_predicted_whole(tmp_path: Path) -> None:
    config = write_segmentor(tmp_path)
    predictor = Predictor(config, save(config), device='cpu', tiles=Tiles(48, 0.25))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
    tiled = predictor(pixels)
    predictor.tiles = None
    right = predictor(np.ascontiguousarray(pixels[:, 52:]))
    assert np.array_equal(tiled.label_map[:, 70:], right.label_map[:, 18:])
    expected = predictor(pixels).label_map
    predictor.tiles = Tiles(100)
    assert np.array_equal(predictor(pixels).label_map, expected)


def test_one_tile_at_a_time_is_in_memory() -> None:
    alive: list[weakref.ref[Any]] = []

    def predict(crop: np.ndarray, path: str) -> Detections:
        alive.append(weakref.ref(crop))
        assert sum(reference() is not None for reference in alive) <= 2
        return find_objects(crop, path)

    predict_in_tiles(predict, scene(), '', Tiles(64, 0.25, with_whole=False))
    assert len(alive) > 30


def test_tiles_that_cannot_work_are_refused() -> None:
    for values, message in {
        (16, 0.2): '16 px, wanted 32 px or more',
        (64, 0.6): 'an overlap of 0.6 of a tile, wanted 0 to 0.5',
        (64, 0.2, True, 1.0): 'iou_thr=1',
    }.items():
        with pytest.raises(ValueError, match=message):
            Tiles(*values)

    def rank(crop: np.ndarray, path: str) -> ClassRanking:
        return ClassRanking(64, 64, np.zeros(1, np.int64), np.ones(1, np.float32), CLASSES)

    with pytest.raises(ValueError, match='not for classes of a whole image'):
        predict_in_tiles(rank, scene(), '', Tiles(64))


def test_the_command_cuts_into_tiles_and_a_run_with_others_is_not_gone_on_with(
    detector: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / 'a.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(image)
    command = [*map(str, detector), str(image), '--out', str(tmp_path / 'out'), '--device', 'cpu', '--tile-size']
    assert MAIN([*command, '64', '--tile-overlap', '0.25']) == 0
    summary = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert summary['tiles'] == dict(size_px=64, overlap=0.25, with_whole=True, iou_thr=0.5)
    assert MAIN([*command, '96', '--resume']) == 1 and 'other settings' in capsys.readouterr().err
    assert MAIN([*command, '10']) == 1 and 'wanted 32 px or more' in capsys.readouterr().err
