"""Schedules fit the data set, and any length of run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS

from addp_backbone.datasets.schedule import LeafOptions, fit_to_images, schedule_text
from addp_backbone.runtime.short_schedules import fit_schedule

ROOT = Path(__file__).parents[3]
BASE = ROOT / 'det_configs' / 'addp_base_maskrcnn.py'
RECIPES = [
    'det_configs/addp_base_maskrcnn.py',
    'det_configs/addp_tiny_maskrcnn.py',
    'seg_configs/addp_base_upernet.py',
    'seg_configs/addp_tiny_upernet.py',
]


def test_205_photographs_get_100_passes_at_the_learning_rate_of_one_process() -> None:
    recipe = Config.fromfile(BASE)
    schedule = fit_to_images(recipe, 205)
    assert schedule is not None
    assert schedule.max_iters == round(205 * 100 / 8) == 2562 and schedule.interval == 256
    assert schedule.lr == pytest.approx(recipe.optim_wrapper.optimizer.lr * 8 / 64)
    warmup, steps = schedule.schedulers
    assert warmup['end'] == 250
    assert [milestone / 2562 for milestone in steps['milestones']] == pytest.approx([8 / 9, 26 / 27], abs=1e-3)


def test_coco_itself_gets_as_many_images_as_the_recipe() -> None:
    schedule = fit_to_images(Config.fromfile(BASE), 118287)
    assert schedule is not None and schedule.max_iters == pytest.approx(184375 * 64 / 8, rel=0.01)


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('num_images', [1, 205, 10**6])
def test_a_written_schedule_is_valid_python_with_a_warm_up_of_a_tenth_at_most(recipe: str, num_images: int) -> None:
    schedule = fit_to_images(Config.fromfile(ROOT / recipe), num_images)
    values: dict = {}
    exec(schedule_text(schedule, LeafOptions(Path('a.py'), BASE, patience=3), 'mIoU'), values)
    iters = values['train_cfg']['max_iters']
    warmup, rest = values['param_scheduler']
    assert warmup['end'] <= max(iters // 10, 1) and rest.get('begin', 0) < iters
    assert values['default_hooks']['checkpoint']['save_best'] == 'mIoU'
    assert values['default_hooks']['early_stopping']['patience'] == 3


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('max_iters', [1, 2, 9, 50, 100, 101])
def test_any_number_of_iterations_leaves_a_schedule_that_mmengine_can_build(recipe: str, max_iters: int) -> None:
    cfg = Config.fromfile(ROOT / recipe)
    cfg.train_cfg.max_iters = max_iters
    fit_schedule(cfg)
    for scheduler in cfg.param_scheduler:
        options = dict(scheduler)
        if options['type'] in ('CosineAnnealingLR', 'PolyLR'):
            options.setdefault('end', max_iters)  # as mmengine's Runner sets it
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        PARAM_SCHEDULERS.build(options, default_args=dict(optimizer=optimizer))


@pytest.mark.parametrize('recipe', ['pretrain/configs/finetune_base_100e.py', 'pretrain/configs/addp_base_1600e.py'])
@pytest.mark.parametrize('max_epochs', [1, 5, 10, 20, 21, 50])
def test_any_number_of_epochs_leaves_a_schedule_that_mmengine_can_build(recipe: str, max_epochs: int) -> None:
    cfg = Config.fromfile(ROOT / recipe)
    assert 'max_epochs' in cfg.train_cfg
    cfg.train_cfg.max_epochs = max_epochs
    fit_schedule(cfg)
    for scheduler in cfg.param_scheduler:
        options = dict(scheduler, end=scheduler.get('end') or max_epochs, epoch_length=7)
        assert options['begin'] < options['end'] <= max_epochs
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        PARAM_SCHEDULERS.build(options, default_args=dict(optimizer=optimizer))
