"""Predictions in the forms of other tools, read back by them or by what was not written here."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks
from stub_predictor import StubPredictor

from addp_backbone.datasets.coco_file import CocoFile
from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.formats.detect import read_annotations
from addp_backbone.datasets.palette import class_palette
from addp_backbone.files.run_length import encode_mask
from addp_backbone.predict.class_info import ClassInfo
from addp_backbone.predict.class_results import ClassMap, ClassRanking
from addp_backbone.predict.detections import Detections
from addp_backbone.predict.labelme import labelme_file, mask_outlines
from addp_backbone.predict.run import iterate_predictions

CLASSES = ClassInfo(('disc', 'box'), tuple(class_palette(2)))
HEIGHT, WIDTH = 60, 90


def masks() -> list[np.ndarray]:
    """A disc; a box of two parts with a gap of one pixel; a box that the disc partly covers."""
    disc, parts, behind = (np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(3))
    cv2.circle(disc, (30, 25), 18, 1, -1)
    parts[5:30, 60:70] = parts[5:30, 71:80] = 1
    behind[20:50, 20:40] = 1
    return [disc, parts, behind]


def detections(with_masks: bool = True) -> Detections:
    boxes = []
    for mask in masks():
        rows, columns = np.nonzero(mask)
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    codes = [encode_mask(mask) for mask in masks()] if with_masks else None
    scores, labels = np.array([0.9, 0.8, 0.4], np.float32), np.array([0, 1, 1])
    return Detections(WIDTH, HEIGHT, np.array(boxes, np.float32), scores, labels, codes, CLASSES)


def read_labelme(folder: Path, images: Path) -> CocoFile:
    findings = Findings()
    coco = read_annotations(folder, images, findings)
    assert coco is not None and not findings.entries
    return coco


@pytest.mark.parametrize('with_masks', [True, False])
def test_a_file_of_labelme_read_as_annotations_has_the_objects_that_were_predicted(
    with_masks: bool, tmp_path: Path
) -> None:
    (tmp_path / 'photos').mkdir()
    Image.new('RGB', (WIDTH, HEIGHT)).save(tmp_path / 'photos' / 'a.png')
    target = tmp_path / 'out' / 'labelme' / 'a.json'
    target.parent.mkdir(parents=True)
    target.write_bytes(labelme_file(detections(with_masks), target, tmp_path / 'photos' / 'a.png'))
    content = json.loads(target.read_text())
    assert content['imagePath'] == '../../photos/a.png' and (target.parent / content['imagePath']).is_file()
    coco = read_labelme(target.parent, tmp_path / 'photos')
    assert [coco.categories[a['category_id']] for a in coco.annotations] == ['disc', 'box', 'box']
    for annotation, box, mask in zip(coco.annotations, detections().boxes, masks(), strict=True):
        x, y, width, height = annotation['bbox']
        assert (x, y, x + width, y + height) == pytest.approx(tuple(box), abs=0.5)
        if with_masks:
            code = coco_masks.merge(coco_masks.frPyObjects(annotation['segmentation'], HEIGHT, WIDTH))
            assert coco_masks.iou([code], [coco_masks.encode(np.asfortranarray(mask))], [0])[0, 0] > 0.97
    if with_masks:
        assert len(coco.annotations[1]['segmentation']) == 2, 'a gap of one pixel stays'


def test_outlines_run_along_the_edges_of_pixels() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[3:9, 4:25] = 1
    (outline,) = mask_outlines(mask)
    assert sorted(map(tuple, outline.tolist())) == [(4.0, 3.0), (4.0, 9.0), (25.0, 3.0), (25.0, 9.0)]
    assert mask_outlines(np.zeros((5, 5), np.uint8)) == []


def test_an_image_without_a_file_is_put_into_the_file_of_labelme(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    content = json.loads(labelme_file(detections(), tmp_path / '000030.json', None, pixels))
    stored = Image.open(io.BytesIO(base64.b64decode(content['imageData'])))
    assert np.array_equal(np.asarray(stored), pixels) and content['imagePath'] == '000030.png'
    with pytest.raises(ValueError, match='needs the image'):
        labelme_file(detections(), tmp_path / 'a.json', None)


def test_a_run_writes_files_of_labelme_and_instance_maps(tmp_path: Path) -> None:
    Image.new('RGB', (WIDTH, HEIGHT), (200, 30, 30)).save(tmp_path / 'a.png')
    predictor = StubPredictor(tmp_path)
    with pytest.raises(ValueError, match='the format labelme is for detections'):
        list(iterate_predictions(predictor, [tmp_path / 'a.png'], tmp_path / 'out', formats=['labelme']))
    predictor.config.default_scope = 'mmdet'
    list(iterate_predictions(predictor, [tmp_path / 'a.png'], tmp_path / 'out', formats=['labelme', 'png']))
    content = json.loads((tmp_path / 'out' / 'labelme' / 'a.json').read_text())
    assert content['shapes'][0]['points'] == [[0, 0], [0, HEIGHT], [WIDTH, HEIGHT], [WIDTH, 0]]
    assert content['imagePath'] == '../../a.png' and content['imageData'] is None
    with Image.open(tmp_path / 'out' / 'instance_maps' / 'a.png') as instance_map:
        assert instance_map.size == (WIDTH, HEIGHT) and np.asarray(instance_map).max() == 1


def test_an_instance_map_numbers_the_objects_from_1_with_the_surest_in_front(tmp_path: Path) -> None:
    (tmp_path / 'a.png').write_bytes(detections().extra_files()['instance_maps'])
    with Image.open(tmp_path / 'a.png') as image:
        numbers = np.asarray(image)
    disc, parts, behind = (mask.astype(bool) for mask in masks())
    assert numbers.dtype == np.uint16 or image.mode.startswith('I')
    assert np.array_equal(numbers == 1, disc) and np.array_equal(numbers == 2, parts)
    assert np.array_equal(numbers == 3, behind & ~disc) and detections(False).extra_files() == {}
    with pytest.raises(ValueError, match='boxes only'):
        detections(False).instance_map()


def test_a_class_map_becomes_a_run_length_code_for_each_class_that_occurs() -> None:
    label_map = np.zeros((4, 6), np.uint8)
    label_map[1:3, 2:] = 2
    results = ClassMap(6, 4, label_map, CLASSES).to_coco(7, [10, 20, 30])
    assert [(one['image_id'], one['category_id']) for one in results] == [(7, 10), (7, 30)]
    assert np.array_equal(coco_masks.decode(results[1]['segmentation']), label_map == 2)


def test_supervision_takes_detections_class_maps_and_rankings() -> None:
    supervision = pytest.importorskip('supervision', reason='supervision is not installed (an extra)')
    found = detections().to_supervision()
    assert isinstance(found, supervision.Detections) and found.data['class_name'].tolist() == ['disc', 'box', 'box']
    assert np.array_equal(found.xyxy, detections().boxes) and np.array_equal(found.mask, np.array(masks(), bool))
    assert found[found.confidence > 0.5].class_id.tolist() == [0, 1]
    drawn = supervision.MaskAnnotator().annotate(np.zeros((HEIGHT, WIDTH, 3), np.uint8), found)
    assert drawn[25, 30].any() and not drawn[0, 0].any()
    assert detections(False).to_supervision().mask is None
    label_map = np.zeros((4, 6), np.uint8)
    label_map[1:3, 2:] = 1
    found = ClassMap(6, 4, label_map, CLASSES).to_supervision()
    assert found.class_id.tolist() == [0, 1] and np.array_equal(found.mask[1], label_map == 1)
    ranking = ClassRanking(6, 4, np.array([1, 0]), np.array([0.7, 0.3], np.float32), CLASSES).to_supervision()
    assert isinstance(ranking, supervision.Classifications) and ranking.get_top_k(1)[0].tolist() == [1]


def test_without_supervision_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__('sys').modules, 'supervision', None)
    with pytest.raises(ModuleNotFoundError, match='pip install supervision'):
        detections().to_supervision()
