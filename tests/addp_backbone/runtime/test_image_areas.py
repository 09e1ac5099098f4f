"""``tools/test.py --per-image``: from what it keeps of each image follow the figures that the test prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS, init_default_scope
from running import run_tool

from addp_backbone.detection.image_matches import ImageMatches
from addp_backbone.files.image_results import read_image_results
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.image_areas import keep_image_results
from experiments.probes.scores import mean_iou


def test_the_areas_of_all_images_give_the_miou(tiny_seg_config: Path, tmp_path: Path) -> None:
    figures, measures = evaluate(tiny_seg_config, tmp_path)
    areas = measures['areas']['areas']
    assert areas.shape == (5, 3, 4) and areas.sum() > 0
    assert float(mean_iou(areas.sum(axis=0))) == pytest.approx(figures['mIoU'], abs=0.006)
    assert measures['areas']['images'].tolist() == [f'{number:04}.jpg' for number in range(5)]


def test_the_matches_of_all_images_give_the_aps(tiny_det_config: Path, tmp_path: Path) -> None:
    figures, measures = evaluate(tiny_det_config, tmp_path, 'model.test_cfg.rcnn.score_thr=0.0')
    for kind in ('bbox', 'segm'):
        (ap,) = ImageMatches.of_arrays(measures[kind]).scores(np.ones((1, 5)))
        assert ap / 100 == pytest.approx(figures[f'coco/{kind}_mAP'], abs=6e-4)


def test_a_config_that_measures_something_else_is_refused() -> None:
    with pytest.raises(LaunchError, match='not what Accuracy measure'):
        keep_image_results(Config(dict(test_evaluator=dict(type='Accuracy'))), 'a.npz')
    with pytest.raises(LaunchError, match=r'ends in \.npz'):
        keep_image_results(Config(dict(test_evaluator=dict(type='IoUMetric'))), 'a.json')


def evaluate(config: Path, folder: Path, *options: str) -> tuple[dict, dict]:
    """Figures and image results of random weights."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    checkpoint = folder / 'random.pth'
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), checkpoint)
    words = ('--work-dir', folder, '--out', folder / 'metrics.json', '--per-image', folder / 'images.npz')
    run_tool('test', config, checkpoint, *words, options=options)
    figures = json.loads((folder / 'metrics.json').read_text(encoding='utf-8'))
    return figures, read_image_results(folder / 'images.npz')
