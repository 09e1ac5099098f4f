"""``tools/test.py`` on data without labels, and its overlays for data in folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from running import run_tool

from addp_backbone.datasets.coco_file import CocoError
from addp_backbone.predict import Predictor
from addp_backbone.predict.run import iterate_predictions
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.show_dir import path_in_dataset


def save_random_weights(config: Path, target: Path) -> Path:
    """A checkpoint with random weights of a config's model."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), target)
    return target


def test_detections_of_a_coco_file_without_annotations_are_written_with_its_ids(
    tiny_det_config: Path, tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((tiny_coco / 'annotations/instances_val2017.json').read_text())
    folder = tmp_path / 'images' / 'sub'
    shutil.copytree(tiny_coco / 'val2017', folder)
    del content['annotations'], content['images'][2:]
    for image in content['images']:
        image.update(id=image['id'] + 100, file_name=f'sub/{image["file_name"]}')
    for category in content['categories']:
        category['id'] += 50
    (tmp_path / 'unlabelled.json').write_text(json.dumps(content))
    checkpoint = save_random_weights(tiny_det_config, tmp_path / 'random.pth')
    options = (
        f'test_dataloader.dataset.ann_file={tmp_path}/unlabelled.json',
        f'test_dataloader.dataset.data_prefix.img={tmp_path}/images',
        f'test_evaluator.ann_file={tmp_path}/unlabelled.json',
        'model.test_cfg.rcnn.score_thr=0.0',
    )
    words = (tiny_det_config, checkpoint, '--work-dir', tmp_path)
    with pytest.raises(CocoError, match=r'no list of objects .annotations.*--format-only writes predictions'):
        run_tool('test', *words, options=options)
    run_tool('test', *words, '--format-only', '--show-dir', tmp_path / 'overlays', options=options)
    assert 'nothing was measured; predictions written: ' in capsys.readouterr().out
    for kind, key in (('bbox', 'bbox'), ('segm', 'segmentation')):
        found = json.loads((tmp_path / f'results.{kind}.json').read_text())
        assert {record['image_id'] for record in found} == {image['id'] for image in content['images']}
        assert {record['category_id'] for record in found} <= {51, 52, 53} and key in found[0]
    changes = dict(option.split('=') for option in options[:2])
    changes['model.test_cfg.rcnn.score_thr'] = 0.0
    predictor = Predictor(tiny_det_config, checkpoint, score_thr=0.0, device='cpu', options=changes)
    list(
        iterate_predictions(
            predictor, [folder / i['file_name'][4:] for i in content['images']], tmp_path, formats=['coco']
        )
    )
    results = json.loads((tmp_path / 'coco_results.json').read_text())
    boxes, masks = (json.loads((tmp_path / f'results.{kind}.json').read_text()) for kind in ('bbox', 'segm'))
    order = [(one['image_id'], -one['score'], one['bbox']) for one in boxes]
    together = [dict(box, segmentation=mask['segmentation']) for box, mask in zip(boxes, masks, strict=True)]
    assert sorted(results, key=lambda one: (one['image_id'], -one['score'], one['bbox'])) == [
        one for _, one in sorted(zip(order, together, strict=True), key=lambda pair: pair[0])
    ], 'tools/predict.py --format coco gives what tools/test.py evaluates'
    assert len(list((tmp_path / 'overlays' / 'sub').glob('*.jpg'))) == len(content['images'])


def test_class_maps_are_written_in_the_masks_convention_and_the_images_folders(
    tiny_seg_config: Path, tiny_ade: Path, tmp_path: Path
) -> None:
    for name in ('a', 'b'):
        (tmp_path / 'images' / name).mkdir(parents=True)
        shutil.copy(tiny_ade / 'images/validation/0000.jpg', tmp_path / 'images' / name / 'x.jpg')
    checkpoint = save_random_weights(tiny_seg_config, tmp_path / 'random.pth')
    options = (
        f'test_dataloader.dataset.data_prefix.img_path={tmp_path}/images',
        f'test_dataloader.dataset.data_prefix.seg_map_path={tmp_path}/masks',
    )
    words = (tiny_seg_config, checkpoint, '--work-dir', tmp_path)
    with pytest.raises(LaunchError, match=r'no masks to compare with\. Set it, or --format-only'):
        run_tool('test', *words, options=options)
    words = (*words, '--format-only', '--out', tmp_path / 'maps.json', '--show-dir', tmp_path / 'overlays')
    run_tool('test', *words, options=options)
    for name in ('a', 'b'):
        mask = np.asarray(Image.open(tmp_path / 'maps' / name / 'x.png'))
        assert mask.shape == (48, 64) and mask.dtype == np.uint8 and 1 <= mask.min() <= mask.max() <= 4
    assert sorted(path.parent.name for path in (tmp_path / 'overlays').glob('*/*')) == ['a', 'b']


def test_a_path_outside_the_folders_of_images_keeps_its_own_folder() -> None:
    assert path_in_dataset('/a/b/c/d.png', [Path('/x'), Path('/a/b')]) == Path('c/d.png')
    assert path_in_dataset('/a/b/c/d.png', [Path('/x')]) == Path('c/d.png')
    assert path_in_dataset('/a/b/../c/d.png', [Path('/a/b')]) == Path('d.png')
