"""Classes, images and objects of COCO files are told apart by name and id, whatever the dialect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_dialects import HEIGHT, NAMES, WIDTH, dialects, make_coco, square
from hypothesis import HealthCheck, given, settings
from mmengine.registry import DATASETS, METRICS

import addp_backbone  # noqa: F401  (registers data set and metric)
from addp_backbone.datasets.coco import DetectionSplit, check_detection
from addp_backbone.datasets.coco_file import CocoError, load_coco, read_coco
from addp_backbone.datasets.findings import Findings


def save(content: Any, folder: Path, name: str = 'a.json') -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding='utf-8')
    return path


def build(path: Path, classes: tuple[str, ...] = NAMES) -> Any:
    return DATASETS.build(
        dict(type='CocoInstances', ann_file=str(path), metainfo=dict(classes=classes), serialize_data=False)
    )


def perfect_figures(path: Path, classes: tuple[str, ...] = NAMES, only: str | None = None) -> dict[str, float]:
    """Figures of detections that are the objects themselves, of one class or all, by the data set's own labels."""
    metric = METRICS.build(dict(type='QuickCocoMetric', ann_file=str(path), metric=['bbox', 'segm'], classwise=True))
    metric.dataset_meta = dict(classes=classes)
    data = build(path, classes)
    from pycocotools import mask as mask_codec

    for item in data.data_list:
        found = [one for one in item['instances'] if only in (None, classes[one['bbox_label']])]
        masks = [
            mask_codec.decode(mask_codec.merge(mask_codec.frPyObjects(one['mask'], item['height'], item['width'])))
            for one in found
        ]
        predictions = dict(
            bboxes=torch.tensor([one['bbox'] for one in found], dtype=torch.float32).reshape(-1, 4),
            scores=torch.ones(len(found)),
            labels=torch.tensor([one['bbox_label'] for one in found], dtype=torch.int64),
            masks=torch.from_numpy(np.array(masks).reshape(-1, item['height'], item['width'])),
        )
        metric.process({}, [dict(img_id=item['img_id'], ori_shape=(HEIGHT, WIDTH), pred_instances=predictions)])
    return metric.evaluate(len(data.data_list))


@given(dialect=dialects())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_perfect_detections_score_1_whatever_ids_and_orders_the_file_has(
    dialect: tuple[dict[str, Any], tuple[str, ...]], tmp_path: Path
) -> None:
    content, classes = dialect
    figures = perfect_figures(save(content, tmp_path), classes)
    assert figures['coco/bbox_mAP'] == figures['coco/segm_mAP'] == 1.0


def test_labels_follow_the_config_and_not_the_order_of_the_file(tmp_path: Path) -> None:
    content = make_coco()
    content['categories'].reverse()
    data = build(save(content, tmp_path))
    names = {record['id']: record['name'] for record in content['categories']}
    wanted = [names[r['category_id']] for r in content['annotations'] if r['image_id'] == 1]
    assert [NAMES[label] for label in data.get_cat_ids(0)] == wanted == ['red', 'blue']


def test_each_class_has_its_own_figure_for_boxes_and_for_masks(tmp_path: Path) -> None:
    content = make_coco()
    content['categories'].reverse()
    figures = perfect_figures(save(content, tmp_path), only='blue')
    for kind in ('bbox', 'segm'):
        assert [figures[f'coco/{kind}_{name}_precision'] for name in NAMES] == [0.0, 1.0, 0.0]


def test_objects_marked_as_ignored_are_neither_trained_on_nor_scored_and_reported(tmp_path: Path) -> None:
    content = make_coco(3)
    ignored = content['annotations'][0]
    ignored['ignore'] = 1
    path = save(content, tmp_path)
    instances = build(path).get_data_info(0)['instances']
    assert [one['ignore_flag'] for one in instances] == [1, 0]
    metric = METRICS.build(dict(type='QuickCocoMetric', ann_file=str(path), metric='bbox'))
    metric.dataset_meta = dict(classes=NAMES)
    for item in build(path).data_list:
        found = [one for one in item['instances'] if not one['ignore_flag']]
        predictions = dict(
            bboxes=torch.tensor([one['bbox'] for one in found], dtype=torch.float32),
            scores=torch.ones(len(found)),
            labels=torch.tensor([one['bbox_label'] for one in found]),
        )
        metric.process({}, [dict(img_id=item['img_id'], ori_shape=(HEIGHT, WIDTH), pred_instances=predictions)])
    assert metric.evaluate(3)['coco/bbox_mAP'] == 1.0
    findings = Findings()
    coco = read_coco(path, findings)
    assert [str(entry.kind) for entry in findings.entries] == ['mended: object marked as ignored']
    assert [record['iscrowd'] for record in coco.annotations][:2] == [1, 0]


def test_written_detections_have_the_data_sets_ids(tmp_path: Path) -> None:
    content = make_coco(1)
    content['images'][0]['id'] = 'photo-1'
    for record in content['annotations']:
        record.update(image_id='photo-1', category_id=record['category_id'] + 40)
    for record in content['categories']:
        record['id'] += 40
    path = save(content, tmp_path)
    metric = METRICS.build(dict(type='QuickCocoMetric', ann_file=str(path), outfile_prefix=str(tmp_path / 'found')))
    metric.dataset_meta = dict(classes=NAMES[::-1])
    one = dict(bboxes=torch.tensor([[4.0, 5, 24, 25]]), scores=torch.ones(1), labels=torch.tensor([2]))
    metric.process({}, [dict(img_id='photo-1', ori_shape=(HEIGHT, WIDTH), pred_instances=one)])
    metric.evaluate(1)
    (written,) = json.loads((tmp_path / 'found.bbox.json').read_text())
    assert written == dict(image_id='photo-1', category_id=41, score=1.0, bbox=[4, 5, 20, 20])


def test_files_without_annotations_are_written_for_but_not_evaluated(tmp_path: Path) -> None:
    content = make_coco(1)
    del content['annotations']
    path = save(content, tmp_path)
    with pytest.raises(CocoError, match='test set'):
        METRICS.build(dict(type='QuickCocoMetric', ann_file=str(path)))
    options = dict(type='QuickCocoMetric', ann_file=str(path), format_only=True, outfile_prefix=str(tmp_path / 'found'))
    metric = METRICS.build(options)
    metric.dataset_meta = dict(classes=NAMES)
    one = dict(bboxes=torch.tensor([[4.0, 5, 24, 25]]), scores=torch.ones(1), labels=torch.tensor([0]))
    metric.process({}, [dict(img_id=1, ori_shape=(HEIGHT, WIDTH), pred_instances=one)])
    assert metric.evaluate(1) == {} and (tmp_path / 'found.bbox.json').exists()


@pytest.mark.parametrize('classes', [('red', 'blue'), ('red', 'blue', 'grün', 'dog'), ('dog', 'person', 'cat')])
def test_other_classes_than_the_files_are_refused_with_both_lists(classes: tuple[str, ...], tmp_path: Path) -> None:
    path = save(make_coco(), tmp_path)
    for use in (build, perfect_figures):
        with pytest.raises(CocoError) as error:
            use(path, classes)
        assert all(name in str(error.value) for name in (*classes, *NAMES))


def test_a_class_without_objects_may_be_left_out(tmp_path: Path) -> None:
    content = make_coco()
    content['categories'].append(dict(id=9, name='unused'))
    assert len(build(save(content, tmp_path))) == 3


HOSTILE: dict[str, Any] = {
    'NaN box': lambda c: c['annotations'][0].update(bbox=[float('nan'), 1, 2, 3]),
    'huge box': lambda c: c['annotations'][0].update(bbox=[0, 0, 1e308, 3]),
    'text box': lambda c: c['annotations'][0].update(bbox=['1', 1, 2, 3]),
    'list id': lambda c: c['annotations'][0].update(id=[1]),
    'dict image id': lambda c: c['annotations'][0].update(image_id={}),
    'dict id of an image': lambda c: c['images'][0].update(id={'a': 1}),
    'width text': lambda c: c['images'][0].update(width='wide'),
    'no width': lambda c: c['images'][0].update(width=0),
    'NUL': lambda c: c['images'][0].update(file_name='a\0.jpg'),
    'leaves': lambda c: c['images'][0].update(file_name='../a.jpg'),
    'leaves by backslash': lambda c: c['images'][0].update(file_name='..\\a.jpg'),
    'absolute': lambda c: c['images'][0].update(file_name='/etc/passwd'),
    'URL': lambda c: c['images'][0].update(file_name='https://a.b/c.jpg'),
    'number as name': lambda c: c['images'][0].update(file_name=3),
    'polygon NaN': lambda c: c['annotations'][0].update(segmentation=[[1, 1, float('nan'), 2, 3, 3]]),
    'code short': lambda c: c['annotations'][0].update(segmentation=dict(size=[HEIGHT, WIDTH], counts=[1, 2])),
    'crowd text': lambda c: c['annotations'][0].update(iscrowd='yes'),
    'empty class name': lambda c: c['categories'][0].update(name=' '),
    'list class name': lambda c: c['categories'][0].update(name=['red']),
    'categories of text': lambda c: c.update(categories=['red']),
    'all': lambda c: c.clear(),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_records_are_errors_for_check_training_and_evaluation_alike(name: str, tmp_path: Path) -> None:
    content = make_coco()
    HOSTILE[name](content)
    path = save(content, tmp_path)
    findings = Findings()
    check_detection([DetectionSplit('train', path, tmp_path)], findings)
    assert [e for e in findings.entries if e.level == 'error' and 'image missing' not in e.kind]
    with pytest.raises(CocoError):
        load_coco(path)


def test_deep_json_and_other_encodings_are_refused_and_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    deep = tmp_path / 'deep.json'
    deep.write_text('[' * 200_000 + ']' * 200_000)
    with pytest.raises(CocoError, match='nested too deeply'):
        load_coco(deep)
    path = tmp_path / 'latin.json'
    path.write_bytes(json.dumps(make_coco(), ensure_ascii=False).encode('latin-1'))
    with pytest.raises(CocoError, match='UTF-8'):
        load_coco(path)
    path.write_text(json.dumps(make_coco()), encoding='utf-8-sig')
    assert len(load_coco(path).annotations) == 6


def changed(tmp_path: Path, change: Any, num_images: int = 3) -> list[str]:
    content = make_coco(num_images)
    for record in content['annotations']:
        change(record)
    findings = Findings()
    check_detection([DetectionSplit('train', save(content, tmp_path), tmp_path)], findings)
    return [f'{e.kind}: {e.detail}' for e in findings.entries if e.level == 'error' and 'image missing' not in e.kind]


def scaled(factor_x: float, factor_y: float, swap: bool = False) -> Any:
    def change(record: dict[str, Any]) -> None:
        polygon = record['segmentation'][0]
        xs, ys = [x * factor_x for x in polygon[::2]], [y * factor_y for y in polygon[1::2]]
        pairs = zip(ys, xs, strict=True) if swap else zip(xs, ys, strict=True)
        record['segmentation'] = [[value for pair in pairs for value in pair]]

    return change


@pytest.mark.parametrize(
    ('change', 'cause'),
    [
        (lambda r: r.update(iscrowd=1), '0 usable objects: all 6 are crowd'),
        (lambda r: r.update(bbox=[v / 96 for v in r['bbox']]), 'shares of the image?'),
        (scaled(1 / WIDTH, 1 / HEIGHT), 'polygons look like shares of the image'),
        (scaled(100 / WIDTH, 100 / HEIGHT), 'polygons look like per cent of the image'),
        (scaled(3, 3), 'polygons look scaled by 3'),
        (scaled(1, 1, swap=True), 'polygons look like y, x'),
        (lambda r: r.update(segmentation=square(200, 10, 20)), 'no pixel in the image'),
    ],
)
def test_a_wrong_frame_is_found_over_all_objects_and_guessed(change: Any, cause: str, tmp_path: Path) -> None:
    errors = changed(tmp_path, change)
    assert any(cause in error for error in errors), errors


def test_a_right_file_has_no_finding_about_frames(tmp_path: Path) -> None:
    assert changed(tmp_path, lambda record: None) == []


def test_dialects_of_exporters_are_mended_and_reported(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / 'images').mkdir()
    for name in ('a b.jpg', 'Ümlaut.JPG', 'c.jpg'):
        Image.new('RGB', (WIDTH, HEIGHT)).save(tmp_path / 'images' / name)
    content = make_coco(3)
    for record, name in zip(
        content['images'], ('export\\a%20b.jpg', 'u\u0308mlaut.jpg', '/home/x/images/c.jpg'), strict=True
    ):
        record['file_name'] = name
    for record in content['annotations']:
        record['image_id'] = str(record['image_id'])
    content['categories'].insert(0, dict(id=0, name='things', supercategory='none'))
    for record in content['categories'][1:]:
        record['supercategory'] = 'things'
    findings = Findings()
    split = DetectionSplit('train', save(content, tmp_path), tmp_path / 'images')
    data = check_detection([split], findings)
    assert findings.num_errors == 0, [str(e) for e in findings.entries if e.level == 'error']
    kinds = [entry.kind for entry in findings.entries]
    assert kinds.count('mended: file name') == 3 and kinds.count('mended: image_id is text') == 6
    assert kinds.count('mended: dummy category') == 1 and data.classes == NAMES
    assert data.files['train'].mended
    mended = tmp_path / 'mended.json'
    mended.write_text(data.files['train'].to_json(), encoding='utf-8')
    again = Findings()
    check_detection([DetectionSplit('train', mended, tmp_path / 'images')], again)
    assert again.entries == []


def test_an_ordinary_file_gives_mmdets_data_list(tiny_coco: Path) -> None:
    from mmdet.datasets import CocoDataset

    options = dict(
        ann_file=str(tiny_coco / 'annotations/instances_train2017.json'),
        data_prefix=dict(img=str(tiny_coco / 'train2017')),
        metainfo=dict(classes=('disc', 'box', 'wedge')),
        filter_cfg=dict(filter_empty_gt=True),
    )
    ours, theirs = DATASETS.build(dict(type='CocoInstances', **options)), CocoDataset(**options)
    assert len(ours) == len(theirs) > 0
    for index in range(len(ours)):
        assert ours.get_data_info(index) == theirs.get_data_info(index)
        assert ours.get_cat_ids(index) == theirs.get_cat_ids(index)
