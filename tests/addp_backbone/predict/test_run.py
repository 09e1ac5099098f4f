"""Prediction image by image: results as they come, going on after a kill, errors of single images, what is an input."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks
from stub_predictor import StubPredictor

from addp_backbone.datasets.palette import class_palette
from addp_backbone.predict.predictions import ClassInfo, ClassMap
from addp_backbone.predict.result_folder import ResultFolder
from addp_backbone.predict.run import iterate_predictions
from addp_backbone.predict.sources import find_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ('a.png', 'b.png', 'sub/a.png', 'sub/c.png'):
        (tmp_path / 'photos' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 6), (200, 30, 30)).save(tmp_path / 'photos' / name)
    return tmp_path / 'photos'


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads((out / 'predictions.json').read_text())


def test_results_lie_on_disk_when_an_image_is_done_and_an_interrupted_run_keeps_them(
    photos: Path, tmp_path: Path
) -> None:
    out, predictor = tmp_path / 'out', StubPredictor(tmp_path)
    running = iterate_predictions(predictor, [photos], out)
    record = next(running)
    assert record['name'] == 'a' and (out / 'overlays' / 'a.png').is_file()
    lines = (out / 'predictions.jsonl').read_text().splitlines()
    assert json.loads(lines[0])['classes'] == ['disc', 'box'] and json.loads(lines[1])['name'] == 'a'
    assert not (out / 'predictions.json').exists()
    running.close()
    assert [image['name'] for image in summary_of(out)['images']] == ['a']


def test_resuming_a_killed_run_predicts_only_what_has_no_whole_line_and_gives_the_same_json(
    photos: Path, tmp_path: Path
) -> None:
    list(iterate_predictions(StubPredictor(tmp_path), [photos], tmp_path / 'whole'))
    out = tmp_path / 'out'
    list(iterate_predictions(StubPredictor(tmp_path), [photos], out))
    lines = (out / 'predictions.jsonl').read_text().splitlines(keepends=True)
    (out / 'predictions.jsonl').write_text(''.join(lines[:3]) + lines[3][:40])  # killed while writing the third
    (out / 'predictions.json').unlink()
    predictor = StubPredictor(tmp_path)
    assert [record['name'] for record in iterate_predictions(predictor, [photos], out, resume=True)] == [
        'sub/a',
        'sub/c',
    ]
    assert summary_of(out) == summary_of(tmp_path / 'whole')
    assert set(summary_of(out)) == {'config', 'checkpoint', 'classes', 'score_thr', 'images'}


def test_a_changed_file_and_a_failed_one_are_predicted_again_and_others_keep_their_names(
    photos: Path, tmp_path: Path
) -> None:
    Image.new('RGB', (8, 6)).save(photos / 'b.png')
    list(iterate_predictions(StubPredictor(tmp_path), [photos], tmp_path / 'out'))
    Image.new('RGB', (9, 9), (10, 200, 10)).save(photos / 'b.png')
    Image.new('RGB', (9, 9), (10, 200, 10)).save(photos / 'sub' / 'a.png')
    Image.new('RGB', (9, 9), (10, 200, 10)).save(photos / 'a.bmp')  # sorts before a.png, whose name is taken
    predictor = StubPredictor(tmp_path)
    list(iterate_predictions(predictor, [photos], tmp_path / 'out', resume=True))
    assert predictor.seen == ['a.bmp', 'b.png', 'a.png']
    assert [(image['name'], image['width']) for image in summary_of(tmp_path / 'out')['images']] == [
        ('a_2', 9),
        ('a', 8),
        ('b', 9),
        ('sub/a', 9),
        ('sub/c', 8),
    ]


def test_a_run_with_other_settings_is_not_gone_on_with(photos: Path, tmp_path: Path) -> None:
    list(iterate_predictions(StubPredictor(tmp_path), [photos], tmp_path / 'out'))
    with pytest.raises(ValueError, match=r'other settings \(score_thr: 0.3, now 0.5\).*leave --resume out'):
        list(iterate_predictions(StubPredictor(tmp_path, score_thr=0.5), [photos], tmp_path / 'out', resume=True))
    assert len(summary_of(tmp_path / 'out')['images']) == 4
    list(iterate_predictions(StubPredictor(tmp_path, score_thr=0.5), [photos / 'b.png'], tmp_path / 'out'))
    assert len(summary_of(tmp_path / 'out')['images']) == 1


def test_an_image_that_fails_costs_its_own_result_only(photos: Path, tmp_path: Path) -> None:
    Image.new('RGB', (8, 6)).save(photos / 'b.png')
    (photos / 'sub' / 'a.png').write_bytes(b'GIF')
    records = list(iterate_predictions(StubPredictor(tmp_path), [photos], tmp_path / 'out'))
    assert [sorted({'error', 'objects'} & set(record)) for record in records] == [
        ['objects'],
        ['error'],
        ['error'],
        ['objects'],
    ]
    assert 'b.png: prediction failed, RuntimeError: out of memory' in records[1]['error']
    assert summary_of(tmp_path / 'out')['images'] == records


def test_an_image_with_as_many_objects_as_the_model_reports_is_marked(photos: Path, tmp_path: Path) -> None:
    marked = list(iterate_predictions(StubPredictor(tmp_path, max_per_img=1), [photos / 'a.png']))
    assert marked[0]['max_per_img'] == 1
    assert 'max_per_img' not in next(iterate_predictions(StubPredictor(tmp_path), [photos / 'a.png']))


@pytest.mark.parametrize('out', ['predictions', 'sub', '.'])
@pytest.mark.parametrize('pattern', ['', '**/*.png'])
def test_what_a_prediction_wrote_is_never_an_input(out: str, pattern: str, photos: Path, tmp_path: Path) -> None:
    source, folder = str(photos / pattern) if pattern else str(photos), photos / out
    expected = ['a.png', 'b.png'] if out == 'sub' else ['a.png', 'b.png', 'sub/a.png', 'sub/c.png']
    for _ in range(2):
        predictor = StubPredictor(tmp_path)
        list(iterate_predictions(predictor, [source], folder))
        assert predictor.seen == [Path(name).name for name in expected]
    originals = [photos / name for name in ('a.png', 'b.png', 'sub/a.png', 'sub/c.png')]
    assert sorted(find_images([source])) == originals, 'a run into another folder leaves them out, too'


def test_names_are_unique_as_files_whatever_the_case_and_beside_folders(tmp_path: Path) -> None:
    for name in ('a/X.png', 'b/x.png', 'c/x_2.png', 'd/x.png.png', 'e/x.png/y.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = list(find_images([tmp_path / folder for folder in 'abcde']).values())
    assert names == ['X', 'x_2', 'x_2_2', 'x.png', 'x.png_/y']


def test_a_full_disk_ends_the_run_instead_of_being_noted_for_every_image(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(ResultFolder, 'add', fail)
    with pytest.raises(OSError, match='No space left'):
        list(iterate_predictions(StubPredictor(tmp_path), [photos], tmp_path / 'out'))


def test_a_class_map_of_over_256_classes_keeps_its_numbers() -> None:
    classes = ClassInfo(tuple(map(str, range(300))), tuple(class_palette(300)))
    data = np.array([[[0, 299, 256]]])
    sample = SimpleNamespace(
        pred_sem_seg=SimpleNamespace(data=SimpleNamespace(squeeze=lambda _: SimpleNamespace(cpu=lambda: _Array(data))))
    )
    found = ClassMap.from_sample(sample, classes, 0.0)
    assert found.label_map.tolist() == [[0, 299, 256]] and set(found.to_json()['fractions']) == {'0', '256', '299'}


class _Array:
    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def numpy(self) -> np.ndarray:
        return self.data[0]


def test_coco_results_and_a_table_are_written_with_the_ids_of_the_data_set(photos: Path, tmp_path: Path) -> None:
    images = [dict(id=7, file_name='sub/a.png', width=8, height=6), dict(id=9, file_name='b.png', width=8, height=6)]
    categories = [dict(id=30, name='box'), dict(id=20, name='disc')]
    (tmp_path / 'test.json').write_text(json.dumps(dict(images=images, categories=categories)))
    predictor = StubPredictor(tmp_path)
    predictor.config.default_scope = 'mmdet'
    predictor.config.test_dataloader.dataset.update(
        data_root=str(tmp_path), ann_file='test.json', data_prefix=dict(img='photos')
    )
    (photos / 'sub' / 'c.png').write_bytes(b'')
    out = tmp_path / 'out'
    for resume in (False, True):
        list(iterate_predictions(predictor, [photos], out, resume, formats=('coco', 'csv')))
        results = json.loads((out / 'coco_results.json').read_text())
        assert [(one['image_id'], one['category_id']) for one in results] == [(10, 20), (9, 20), (7, 20)]
        assert [image.get('image_id') for image in summary_of(out)['images']] == [10, 9, 7, None]
    assert coco_masks.decode(results[0]['segmentation']).shape == (6, 8) and results[0]['bbox'] == [0, 0, 8, 6]
    assert not any('coco' in image for image in summary_of(out)['images'])
    table = list(csv.DictReader((out / 'predictions.csv').open(newline='')))
    assert [(row['category'], row['width']) for row in table] == [('disc', '8.0')] * 3 + [('', '')]
    assert 'is not an image' in table[3]['error'] and not (out / 'overlays').exists()


def test_the_coco_format_is_refused_where_there_are_no_detections(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='this config is not a detector'):
        list(iterate_predictions(StubPredictor(tmp_path), [photos], tmp_path / 'out', formats=('coco',)))
    assert not (tmp_path / 'out').exists()


MEMORY_SCRIPT = """
import resource
import numpy as np, torch
from mmengine.structures import InstanceData
from types import SimpleNamespace
from addp_backbone.detection.mask_head import encode_pasted
from addp_backbone.predict.predictions import ClassInfo, Detections

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

n, height, width = 100, 800, 1000
generator = torch.Generator().manual_seed(0)
boxes = torch.rand(n, 4, generator=generator) * torch.tensor([width / 2, height / 2, width / 2, height / 2])
boxes[:, 2:] += torch.tensor([width / 2, height / 2])
image = np.zeros((height, width, 3), np.uint8)
before = peak_bytes()
masks = encode_pasted(torch.rand(n, 1, 28, 28, generator=generator), boxes, (height, width), 0.5)
sample = SimpleNamespace(ori_shape=(height, width), pred_instances=InstanceData(
    bboxes=boxes, scores=torch.ones(n), labels=torch.zeros(n, dtype=torch.long), masks=masks))
drawn = Detections.from_sample(sample, ClassInfo(('disc',), ((1, 2, 3),)), 0.3).draw(image)
print((peak_bytes() - before) / (height * width))
"""


def test_memory_for_100_objects_is_that_of_few_images_not_of_100_masks() -> None:
    output = subprocess.run([sys.executable, '-c', MEMORY_SCRIPT], capture_output=True, text=True, check=True).stdout
    assert float(output) < 60, 'bytes a pixel; 100 masks alone take 100, copied for sorting and drawing 400'
