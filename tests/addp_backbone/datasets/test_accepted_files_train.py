"""Whatever ``tools/new_dataset.py`` accepts trains and validates, and true predictions score 1: random data sets.

``ADDP_NUM_FILES=200`` tries more of them than the suite does.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_dialects import broken_files, dialects
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from addp_backbone.runtime.runner import StageRunner

ROOT = Path(__file__).parents[3]
NEW_DATASET = runpy.run_path(str(ROOT / 'tools' / 'new_dataset.py'))['main']
NUM_FILES = int(os.environ.get('ADDP_NUM_FILES', '0'))
FEW = settings(
    max_examples=NUM_FILES or 2,
    derandomize=not NUM_FILES,
    deadline=None,
    phases=list(Phase)
    if NUM_FILES
    else [Phase.generate],  # in the suite a failure is not made smaller, which takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def empty_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def accepted_config(content: dict[str, Any], folder: Path, base: Path) -> Config | None:
    """The config that the tool writes for a COCO file, for two iterations; None if it refuses the file."""
    for record in content['images']:
        pixels = np.random.default_rng(1).integers(0, 255, (record['height'], record['width'], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / record['file_name'])
    (folder / 'a.json').write_text(json.dumps(content), encoding='utf-8')
    data = [word for split in ('train', 'val') for word in (f'--{split}-json', f'{folder}/a.json')]
    data += [word for split in ('train', 'val') for word in (f'--{split}-images', str(folder))]
    if NEW_DATASET(['det', '--out', f'{folder}/leaf.py', '--base', str(base), '--workers', '1', *data]):
        return None
    cfg = Config.fromfile(folder / 'leaf.py')
    cfg.train_cfg.update(max_iters=2, val_interval=2, val_begin=1)
    cfg.param_scheduler = cfg.param_scheduler[:1]
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=1000, save_last=False)
    cfg.work_dir = str(folder / 'run')
    return cfg


@pytest.mark.parametrize('kind', ['dialects of exporters', 'anything in place of values'])
def test_an_accepted_coco_file_trains_and_validates(kind: str, tiny_det_config: Path, tmp_path: Path) -> None:
    contents = dialects().map(lambda drawn: drawn[0]) if kind.startswith('dialects') else broken_files()
    num_accepted = 0

    @given(content=contents)
    @FEW
    def trains(content: dict[str, Any]) -> None:
        nonlocal num_accepted
        cfg = accepted_config(content, empty_folder(tmp_path / 'data'), tiny_det_config)
        if cfg is None:
            return
        num_accepted += 1
        cfg.experiment_name = f'{tmp_path.name}_{num_accepted}'
        runner = StageRunner.from_cfg(cfg)
        runner.train()
        assert runner.iter == 2
        figures = {name: log.current() for name, log in runner.message_hub.log_scalars.items()}
        assert math.isfinite(figures['train/loss'])
        assert -1 <= figures.get('val/coco/bbox_mAP', 0) <= 1  # absent where nothing at all was detected

    trains()
    assert num_accepted


@st.composite
def labelled_masks(draw: st.DrawFn) -> dict[str, Any]:
    """Masks of two to four classes in one of the conventions, and what each value means (255 = void)."""
    num_classes = draw(st.integers(2, 4))
    void = draw(st.sampled_from(['zero', '255', 'last']))
    first = 1 if void == 'zero' else 0
    voids = {'zero': 0, '255': 255, 'last': num_classes}
    meaning = {first + index: index for index in range(num_classes)} | {voids[void]: 255}
    shape = (draw(st.integers(8, 24)), draw(st.integers(8, 24)))
    seed = draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    masks = [rng.choice(sorted(meaning), shape).astype(np.uint8) for _ in range(draw(st.integers(1, 3)))]
    masks[0].flat[: len(meaning)] = sorted(meaning)  # every value occurs
    return dict(num_classes=num_classes, void=void, meaning=meaning, masks=masks)


@given(data=labelled_masks())
@settings(FEW, max_examples=NUM_FILES or 6)
def test_true_class_maps_score_a_miou_of_1_in_every_convention_of_masks(data: dict[str, Any], tmp_path: Path) -> None:
    folder = empty_folder(tmp_path / 'data')
    for kind in ('images', 'masks'):
        (folder / kind).mkdir()
    for index, mask in enumerate(data['masks']):
        Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(folder / 'images' / f'{index}.png')
        Image.fromarray(mask).save(folder / 'masks' / f'{index}.png')
    (folder / 'classes.txt').write_text('\n'.join(f'class {index}' for index in range(data['num_classes'])))
    words = ['seg', '--out', f'{folder}/leaf.py', '--base', str(ROOT / 'seg_configs' / 'addp_tiny_upernet_128px.py')]
    words += ['--classes', f'{folder}/classes.txt', '--void', data['void'], '--workers', '1']
    words += [w for split in ('train', 'val') for w in (f'--{split}-images', f'{folder}/images')]
    words += [w for split in ('train', 'val') for w in (f'--{split}-masks', f'{folder}/masks')]
    assert NEW_DATASET(words) == 0
    cfg = Config.fromfile(folder / 'leaf.py')
    init_default_scope('mmseg')
    from mmseg.registry import DATASETS, METRICS

    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    meaning = np.full(256, 255)
    meaning[list(data['meaning'])] = list(data['meaning'].values())
    for index in range(len(dataset)):
        sample = dataset[index]['data_samples']
        truth = meaning[data['masks'][int(Path(sample.img_path).stem)]]
        guess = np.where(truth == 255, 0, truth)  # void is not scored, whatever is said of it
        prediction = dict(data=torch.from_numpy(guess)[None])
        metric.process({}, [dict(pred_sem_seg=prediction, gt_sem_seg=dict(data=sample.gt_sem_seg.data))])
    assert metric.evaluate(len(dataset))['mIoU'] == 100.0
