"""Our COCO evaluation gives pycocotools' numbers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import Config
from pycocotools import mask as mask_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from addp_backbone.detection.coco_metric import CocoEvaluation

REPOSITORY = Path(__file__).resolve().parents[3]
HEIGHT_PX, WIDTH_PX = 240, 320
CLASSES = ('disc', 'box', 'wedge')
NUM_IMAGES = 12
CATEGORY_IDS = (3, 7, 11)  # not 0..2, as in COCO
QUICK = 'QuickCocoMetric'


def test_the_detection_configs_evaluate_with_the_fast_metric() -> None:
    config = Config.fromfile(REPOSITORY / 'det_configs' / 'addp_base_maskrcnn.py')
    assert config.val_evaluator.type == config.test_evaluator.type == QUICK


@pytest.mark.parametrize('seed', [0, 1])
def test_fast_metric_equals_pycocotools_on_random_boxes_and_masks_with_crowds_and_all_areas(
    tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    annotations = _write_ground_truth(tmp_path / 'gt.json', rng)
    samples = [_random_detections(rng, image_id, annotations) for image_id in range(1, NUM_IMAGES + 1)]
    slow, fast = (_evaluate(kind, tmp_path / 'gt.json', samples) for kind in ('CocoMetric', QUICK))
    assert {key: fast[key] for key in slow if not key.endswith('_precision')} == {
        key: value for key, value in slow.items() if not key.endswith('_precision')
    }
    for name in CLASSES:  # mmdet has one key for both kinds, where the masks' figure overwrites the boxes'
        assert fast[f'coco/segm_{name}_precision'] == slow[f'coco/{name}_precision']
    for kind in ('bbox', 'segm'):
        for size in ('', '_50', '_75', '_s', '_m', '_l'):
            assert 0 < slow[f'coco/{kind}_mAP{size}'] < 1, 'every figure has to be exercised'
    assert any(record['iscrowd'] for record in annotations)


def test_fast_metric_equals_pycocotools_when_nothing_is_detected(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    annotations = _write_ground_truth(tmp_path / 'gt.json', rng)
    samples = [_random_detections(rng, image_id, annotations, share_found=0.0, num_wrong=0) for image_id in (1, 2, 3)]
    assert _evaluate('CocoMetric', tmp_path / 'gt.json', samples) == _evaluate(QUICK, tmp_path / 'gt.json', samples)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_the_twelve_numbers_are_pycocotools_numbers_to_the_last_digits(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(2)
    annotations = _write_ground_truth(tmp_path / 'gt.json', rng)
    truth = COCO(str(tmp_path / 'gt.json'))
    metric = METRICS.build(dict(type=QUICK, ann_file=str(tmp_path / 'gt.json'), metric=kind))
    metric.cat_ids = list(CATEGORY_IDS)
    metric.process({}, [_random_detections(rng, image_id, annotations) for image_id in range(1, NUM_IMAGES + 1)])
    detections = [detection for _, prediction in metric.results for detection in metric._detections(prediction, kind)]
    ours = CocoEvaluation(truth, copy.deepcopy(detections), kind)
    theirs = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), kind)
    for evaluation in (ours, theirs):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    np.testing.assert_allclose(ours.stats[:12], theirs.stats, rtol=0, atol=1e-12)
    assert (theirs.stats > 0).all()


def test_detections_in_bfloat16_are_evaluated_as_their_rounded_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    annotations = _write_ground_truth(tmp_path / 'gt.json', rng)
    samples = [_random_detections(rng, image_id, annotations) for image_id in range(1, NUM_IMAGES + 1)]
    for sample in samples:
        for key in ('bboxes', 'scores'):
            sample['pred_instances'][key] = sample['pred_instances'][key].bfloat16()
    halves = copy.deepcopy(samples)
    for sample in samples:
        for key in ('bboxes', 'scores'):
            sample['pred_instances'][key] = sample['pred_instances'][key].float()
    assert _evaluate(QUICK, tmp_path / 'gt.json', halves) == _evaluate(QUICK, tmp_path / 'gt.json', samples)


def test_detections_of_an_unknown_image_are_refused(tmp_path: Path) -> None:
    _write_ground_truth(tmp_path / 'gt.json', np.random.default_rng(0))
    found = [dict(image_id=99, category_id=3, score=0.5, bbox=[0.0, 0.0, 5.0, 5.0])]
    with pytest.raises(ValueError, match=r'does not have, such as \[99\]'):
        CocoEvaluation(COCO(str(tmp_path / 'gt.json')), found, 'bbox').run()


def test_matching_across_classes_is_refused(tmp_path: Path) -> None:
    _write_ground_truth(tmp_path / 'gt.json', np.random.default_rng(0))
    evaluation = CocoEvaluation(COCO(str(tmp_path / 'gt.json')), [], 'bbox')
    evaluation.params.useCats = 0
    with pytest.raises(ValueError, match='useCats is 0'):
        evaluation.run()


def test_results_that_shall_be_written_are_written_with_the_same_figures(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    annotations = _write_ground_truth(tmp_path / 'gt.json', rng)
    samples = [_random_detections(rng, image_id, annotations) for image_id in (1, 2, 3)]
    written = _evaluate(QUICK, tmp_path / 'gt.json', samples, outfile_prefix=str(tmp_path / 'found'))
    assert written == _evaluate(QUICK, tmp_path / 'gt.json', samples)
    assert json.loads((tmp_path / 'found.segm.json').read_text())


def _evaluate(kind: str, ann_file: Path, samples: list[dict[str, Any]], **options: Any) -> dict[str, float]:
    metric: CocoMetric = METRICS.build(
        dict(type=kind, ann_file=str(ann_file), metric=['bbox', 'segm'], classwise=True, **options)
    )
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, samples)
    return metric.evaluate(size=len(samples))


def _write_ground_truth(path: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, NUM_IMAGES + 1):
        for _ in range(int(rng.integers(0, 9)) if image_id > 1 else 6):
            mask = _random_mask(rng)
            crowd = len(annotations) % 7 == 3
            rle = mask_codec.encode(np.asfortranarray(mask))
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=int(rng.choice(CATEGORY_IDS)),
                    iscrowd=int(crowd),
                    bbox=[float(v) for v in mask_codec.toBbox(rle)],
                    area=float(mask_codec.area(rle)),
                    segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
                )
            )
    images = [dict(id=i, file_name=f'{i}.jpg', height=HEIGHT_PX, width=WIDTH_PX) for i in range(1, NUM_IMAGES + 1)]
    categories = [dict(id=i, name=name) for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)), encoding='utf-8')
    return annotations


def _random_mask(rng: np.random.Generator) -> np.ndarray:
    """An ellipse, uint8, with sides from 10 to 150 px: below 32 squared, between, and over 96 squared px."""
    height, width = (int(side) for side in rng.integers(10, 150, 2))
    y, x = int(rng.integers(0, HEIGHT_PX - height)), int(rng.integers(0, WIDTH_PX - width))
    rows, columns = np.ogrid[:HEIGHT_PX, :WIDTH_PX]
    return (((rows - y - height / 2) / (height / 2)) ** 2 + ((columns - x - width / 2) / (width / 2)) ** 2 <= 1).astype(
        np.uint8
    )


def _random_detections(
    rng: np.random.Generator,
    image_id: int,
    annotations: list[dict[str, Any]],
    share_found: float = 0.7,
    num_wrong: int = 5,
) -> dict[str, Any]:
    """Shifted copies of most objects (some twice, some with a wrong label), and some detections of nothing."""
    masks, labels = [], []
    for record in annotations:
        if record['image_id'] != image_id:
            continue
        while rng.random() < share_found:
            shift = tuple(int(v) for v in rng.integers(-3, 4, 2))
            masks.append(np.roll(mask_codec.decode(record['segmentation']), shift, (0, 1)))
            labels.append(CATEGORY_IDS.index(record['category_id']) if rng.random() < 0.9 else int(rng.integers(3)))
    masks += [_random_mask(rng) for _ in range(num_wrong)]
    labels += [int(label) for label in rng.integers(0, 3, num_wrong)]
    stacked = np.stack(masks) if masks else np.zeros((0, HEIGHT_PX, WIDTH_PX), np.uint8)
    boxes = [mask_codec.toBbox(mask_codec.encode(np.asfortranarray(mask))) for mask in masks]
    xywh = torch.tensor(np.array(boxes, dtype=np.float32).reshape(-1, 4))
    scores = torch.tensor(rng.integers(1, 100, len(labels)) / 100, dtype=torch.float32)  # ties occur
    predictions = dict(
        bboxes=torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), dim=1),
        scores=scores,
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=torch.from_numpy(stacked).bool(),
    )
    return dict(img_id=image_id, ori_shape=(HEIGHT_PX, WIDTH_PX), pred_instances=predictions)
