"""Whatever the check accepts, training can load and evaluation can score."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, DefaultScope
from PIL import Image

import addp_backbone  # noqa: F401  (registers data set and metric)
from addp_backbone.datasets.coco import DetectionSplit, check_detection
from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.segments import segmentation_bounds

CONFIG = Config.fromfile(Path(__file__).parents[3] / 'det_configs' / 'addp_tiny_maskrcnn_128px.py')
WIDTH, HEIGHT = 40, 32
BOX = [4, 5, 20, 16]
SQUARE = [[4, 5, 24, 5, 24, 21, 4, 21]]
CODE = dict(size=[HEIGHT, WIDTH], counts=[133, 16, *[16, 16] * 19, HEIGHT * WIDTH - 133 - 16 - 19 * 32])
NUMBERS = st.one_of(
    st.integers(-5, 50),
    st.floats(-5, 50),
    st.sampled_from([0, -1, 1e308, -1e308, float('nan'), float('inf'), 10**30, '7', None, True, [], {}]),
)
VALUES: dict[str, Any] = {
    'id': st.one_of(st.integers(0, 5), st.sampled_from(['0001', 'x', 1.0, None, [1], 10**30])),
    'image_id': st.sampled_from([1, 2, '1', 1.0, 9, None, {}]),
    'category_id': st.sampled_from([1, 2, '2', 7, None, [], True]),
    'bbox': st.one_of(st.lists(NUMBERS, min_size=3, max_size=5), st.just(BOX), NUMBERS),
    'area': NUMBERS,
    'iscrowd': st.sampled_from([0, 1, True, None, '1', 2, 'no']),
    'segmentation': st.one_of(
        st.just(SQUARE),
        st.just(CODE),
        st.lists(st.lists(NUMBERS, max_size=9), max_size=2),
        st.fixed_dictionaries(dict(size=st.just([HEIGHT, WIDTH]), counts=st.one_of(st.lists(NUMBERS), st.text()))),
        NUMBERS,
    ),
}


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    """A file of two images, some of whose values are anything."""
    good = dict(bbox=BOX, area=320, iscrowd=0, segmentation=SQUARE)
    annotations = []
    for number in range(draw(st.integers(1, 4))):
        record = dict(copy.deepcopy(good), id=number + 1, image_id=number % 2 + 1, category_id=number % 2 + 1)
        if draw(st.integers(0, 2)):
            key = draw(st.sampled_from(sorted(VALUES)))
            record[key] = draw(VALUES[key])
        if not draw(st.integers(0, 5)):
            del record[draw(st.sampled_from(sorted(record)))]
        annotations.append(record)
    images = [dict(id=i, file_name=f'{i}.png', width=WIDTH, height=HEIGHT) for i in (1, 2)]
    return dict(images=images, annotations=annotations, categories=[dict(id=i, name=f'c{i}') for i in (1, 2)])


@given(content=files())
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
