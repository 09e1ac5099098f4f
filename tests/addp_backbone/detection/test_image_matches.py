"""Matches of each image: AP of all images, and of any draw of them, is pycocotools'."""

from __future__ import annotations

import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
from mmdet.registry import METRICS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import addp_backbone.detection.coco_metric  # noqa: F401  (registers)
from addp_backbone.detection.image_matches import ImageMatches
from addp_backbone.files.image_results import read_image_results, write_image_results

NUM_IMAGES, CLASSES = 9, ('disc', 'box')


@pytest.fixture(scope='module')
def scene():
    """Annotations with crowds, and detections with ties, doubles, misses and wrong classes; ids are not numbers."""
    rng = np.random.default_rng(0)
    images = [dict(id=f'i{number}', file_name=f'{number}.jpg', height=200, width=200) for number in range(NUM_IMAGES)]
    annotations, found = [], {image['id']: [] for image in images}
    for number, image in enumerate(images):
        scores = iter(rng.permutation(60) / 60)  # equal ones in different images alone
        for _ in range(int(rng.integers(1, 7)) if number else 0):
            box = rng.integers((0, 0, 15, 15), (100, 100, 90, 90))
            width, height = (int(v) for v in box[2:])
            label, crowd = int(rng.integers(2)), int(rng.random() < 0.2)
            record = dict(id=len(annotations) + 1, image_id=image['id'], category_id=label + 5, bbox=box.tolist())
            annotations.append({**record, 'area': width * height, 'iscrowd': crowd})
            while rng.random() < 0.6:
                shift = rng.normal(0, 4, 4)
                found[image['id']].append((box + shift, label, next(scores)))
        found[image['id']].append((np.array([3.0, 3, 40, 40]), int(rng.integers(2)), next(scores)))
    categories = [dict(id=index + 5, name=name) for index, name in enumerate(CLASSES)]
    return dict(images=images, annotations=annotations, categories=categories), found


@pytest.fixture(scope='module')
def matches(scene, tmp_path_factory):
    """What the metric writes for the scene, with its figures."""
    truth, found = scene
    folder = tmp_path_factory.mktemp('scene')
    (folder / 'truth.json').write_text(json.dumps(truth), encoding='utf-8')
    figures = evaluate(folder, {name: rows for name, rows in found.items()})
    return ImageMatches.of_arrays(read_image_results(folder / 'matches.npz')['bbox']), figures


def evaluate(folder, found):
    options = dict(ann_file=str(folder / 'truth.json'), matches_file=str(folder / 'matches.npz'))
    metric = METRICS.build(dict(type='QuickCocoMetric', **options))
    metric.dataset_meta = dict(classes=CLASSES)
    for image, rows in found.items():
        boxes = torch.tensor(np.array([[b[0], b[1], b[0] + b[2], b[1] + b[3]] for b, _, _ in rows]).reshape(-1, 4))
        instances = dict(
            bboxes=boxes,
            scores=torch.tensor([score for _, _, score in rows], dtype=torch.float64),
            labels=torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        )
        metric.process({}, [dict(img_id=image, pred_instances=instances)])
    return metric.evaluate(len(found))


def pycocotools_ap(scene, counts):
    """AP of a data set in which each image stands as often as was drawn."""
    truth, found = scene
    drawn = dict(images=[], annotations=[], categories=truth['categories'])
    detections = []
    for image, count in zip(truth['images'], counts, strict=True):
        for _ in range(int(count)):
            number = len(drawn['images']) + 1
            drawn['images'].append({**image, 'id': number})
            for record in truth['annotations']:
                if record['image_id'] == image['id']:
                    drawn['annotations'].append({**record, 'image_id': number, 'id': len(drawn['annotations']) + 1})
            for box, label, score in found[image['id']]:
                detections.append(
                    dict(image_id=number, category_id=label + 5, score=score, bbox=[float(v) for v in box])
                )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = drawn
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0]


def test_the_ap_of_all_images_is_cocos(scene, matches):
    found, figures = matches
    (ap,) = found.scores(np.ones((1, NUM_IMAGES)))
    assert ap == pytest.approx(pycocotools_ap(scene, [1] * NUM_IMAGES), abs=1e-9)
    assert figures['coco/bbox_mAP'] == round(ap / 100, 3) and 5 < ap < 95
    assert found.left_out.any() and found.images == tuple(f'i{number}' for number in range(NUM_IMAGES))


def test_the_ap_of_a_draw_is_that_of_a_data_set_that_has_each_image_as_often(scene, matches):
    counts = np.random.default_rng(1).multinomial(NUM_IMAGES, [1 / NUM_IMAGES] * NUM_IMAGES, 4)
    expected = [pycocotools_ap(scene, draw) for draw in counts]
    np.testing.assert_allclose(matches[0].scores(counts), expected, rtol=0, atol=1e-9)
    assert len(set(expected)) == 4


def test_a_draw_without_any_object_has_no_ap(scene, matches):
    empty = matches[0].num_objects.sum(axis=1) == 0
    assert empty.any() and np.isnan(matches[0].scores(empty[None].astype(int))).all()


def test_a_detector_that_finds_nothing_has_an_ap_of_0(scene, tmp_path):
    (tmp_path / 'truth.json').write_text(json.dumps(scene[0]), encoding='utf-8')
    evaluate(tmp_path, {image['id']: [] for image in scene[0]['images']})
    found = ImageMatches.of_arrays(read_image_results(tmp_path / 'matches.npz')['bbox'])
    assert found.scores(np.ones((1, NUM_IMAGES))).tolist() == [0.0]


def test_a_file_that_was_cut_is_refused_with_where_such_files_come_from(tmp_path):
    write_image_results(tmp_path / 'a.npz', {'bbox': dict(score=np.zeros(5))})
    content = (tmp_path / 'a.npz').read_bytes()
    (tmp_path / 'a.npz').write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r'tools/test\.py --per-image'):
        read_image_results(tmp_path / 'a.npz')
