"""Whatever the check accepts, training can load and evaluation can score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_dialects import BROKEN_HEIGHT as HEIGHT
from coco_dialects import BROKEN_WIDTH as WIDTH
from coco_dialects import broken_files
from hypothesis import HealthCheck, given, settings
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, DefaultScope
from PIL import Image

import addp_backbone  # noqa: F401  (registers data set and metric)
from addp_backbone.datasets.coco import DetectionSplit, check_detection
from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.segments import segmentation_bounds

CONFIG = Config.fromfile(Path(__file__).parents[3] / 'det_configs' / 'addp_tiny_maskrcnn_128px.py')


@pytest.mark.parametrize(
    ('kind', 'key', 'value'),
    [
        ('images', 'file_name', 'a' * 256 + '.png'),
        ('images', 'file_name', 'b/' * 1500 + '.png'),
        ('images', 'file_name', '\ud800.png'),
        ('categories', 'name', 'c\ud800'),
        ('annotations', 'area', 10**400),
    ],
)
def test_names_that_no_system_takes_and_numbers_that_no_float_holds_are_findings(
    kind: str, key: str, value: Any, tmp_path: Path
) -> None:
    box = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9], area=81, iscrowd=0)
    image = dict(id=1, file_name='a.png', width=WIDTH, height=HEIGHT)
    content: dict[str, Any] = dict(images=[image], annotations=[box], categories=[dict(id=1, name='c1')])
    Image.new('RGB', (WIDTH, HEIGHT)).save(tmp_path / 'a.png')
    content[kind][0][key] = value
    (tmp_path / 'a.json').write_text(json.dumps(content))
    findings = Findings()
    data = check_detection([DetectionSplit('train', tmp_path / 'a.json', tmp_path)], findings)
    if key == 'area':
        assert not findings.num_errors and data.files['train'].annotations[0]['area'] == 81
    else:
        assert findings.num_errors


@given(content=broken_files())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_accepted_file_loads_and_evaluates(content: dict[str, Any], tmp_path: Path) -> None:
    for image in content['images']:
        if not (tmp_path / image['file_name']).exists():
            Image.fromarray(np.full((HEIGHT, WIDTH, 3), 80, np.uint8)).save(tmp_path / image['file_name'])
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content))
    findings = Findings()
    data = check_detection([DetectionSplit('train', path, tmp_path)], findings)
    if findings.num_errors:
        return
    for box in (record for record in data.files['train'].annotations if 'segmentation' in record):
        segmentation_bounds(box['segmentation'])
    options = dict(ann_file=str(path), data_prefix=dict(img=str(tmp_path)), metainfo=dict(classes=('c1', 'c2')))
    pipeline = [dict(step) for step in CONFIG.train_pipeline]
    for step in pipeline:
        if 'with_mask' in step:
            step['with_mask'] = data.has_masks
    with DefaultScope.overwrite_default_scope('mmdet'):
        from mmdet.registry import DATASETS as MMDET_DATASETS

        dataset = MMDET_DATASETS.build(dict(type='CocoInstances', pipeline=pipeline, **options))
    for index in range(len(dataset)):
        assert np.isfinite(dataset[index]['data_samples'].gt_instances.bboxes.tensor).all()
    kinds = ['bbox', 'segm'] if data.has_masks else ['bbox']
    metric = METRICS.build(dict(type='QuickCocoMetric', ann_file=str(path), metric=kinds))
    metric.dataset_meta = dict(classes=('c1', 'c2'))
    tested = DATASETS.build(dict(type='CocoInstances', test_mode=True, serialize_data=False, **options))
    for item in tested.data_list:
        found = [one for one in item['instances'] if not one['ignore_flag']]
        predictions = dict(
            bboxes=torch.tensor([one['bbox'] for one in found], dtype=torch.float64).reshape(-1, 4),
            scores=torch.ones(len(found)),
            labels=torch.tensor([one['bbox_label'] for one in found], dtype=torch.int64),
            masks=torch.ones(len(found), HEIGHT, WIDTH, dtype=torch.bool),
        )
        metric.process({}, [dict(img_id=item['img_id'], pred_instances=predictions)])
    figures = metric.evaluate(2)
    used = [one for i in range(len(dataset)) for one in dataset.get_data_info(i)['instances'] if not one['ignore_flag']]
    if used:
        assert figures['coco/bbox_mAP'] > 0 or figures['coco/bbox_mAP'] == -1
