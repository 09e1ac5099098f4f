"""Learning rate and schedule follow the global batch (tools/train.py --auto-scale-lr)."""

from __future__ import annotations

import math

import pytest
from mmengine.config import Config

from addp_backbone.runtime.scale_lr import describe_changes, scale_lr


def make_config(batch_size: int = 64, accumulation: int = 1, rule: str = 'linear') -> Config:
    """ViTDet's schedule: batch 64, 184375 iterations, two milestones, 250 iterations of warm-up."""
    return Config(
        dict(
            train_dataloader=dict(batch_size=batch_size),
            optim_wrapper=dict(
                type='OptimWrapper', accumulative_counts=accumulation, optimizer=dict(type='AdamW', lr=1e-4)
            ),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
                dict(type='MultiStepLR', by_epoch=False, begin=0, end=184375, milestones=[163889, 177546], gamma=0.1),
            ],
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=184375, val_interval=5000),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5000)),
            auto_scale_lr=dict(enable=True, base_batch_size=64, rule=rule),
        )
    )


def test_an_eighth_of_the_batch_takes_an_eighth_of_the_lr_and_eight_times_the_iterations() -> None:
    cfg = make_config(batch_size=2)
    scale_lr(cfg, world_size=4)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4 / 8)
    assert cfg.train_cfg.max_iters == 8 * 184375
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 40000
    assert cfg.param_scheduler[1].milestones == [8 * 163889, 8 * 177546]
    assert cfg.param_scheduler[1].end == 8 * 184375


def test_warm_up_keeps_its_length() -> None:
    cfg = make_config(batch_size=2)
    scale_lr(cfg, world_size=4)
    assert (cfg.param_scheduler[0].begin, cfg.param_scheduler[0].end) == (0, 250)


def test_the_square_root_rule_takes_the_root_for_the_lr_alone() -> None:
    cfg = make_config(batch_size=16, rule='sqrt')
    scale_lr(cfg, world_size=1)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4 / 2)
    assert cfg.train_cfg.max_iters == 4 * 184375


def test_accumulation_to_the_base_batch_keeps_lr_and_optimizer_steps() -> None:
    cfg = make_config(batch_size=4, accumulation=16)
    scale_lr(cfg, world_size=1)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4)
    assert cfg.train_cfg.max_iters == 16 * 184375
    assert cfg.param_scheduler[0].end == 16 * 250


def test_checkpoints_fall_on_whole_accumulations() -> None:
    cfg = make_config(batch_size=5, accumulation=3)
    scale_lr(cfg, world_size=1)
    assert cfg.default_hooks.checkpoint.interval % 3 == cfg.train_cfg.max_iters % 3 == 0


def test_at_the_base_batch_nothing_changes() -> None:
    cfg = make_config()
    assert scale_lr(cfg, world_size=1) == []
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert 'nothing to change' in describe_changes([], 64, 64)


def test_a_cosine_still_ends_with_training() -> None:
    cfg = make_config(batch_size=48)
    cfg.param_scheduler[1] = dict(type='CosineAnnealingLR', by_epoch=False, begin=250, end=184375, T_max=184125)
    scale_lr(cfg, world_size=1)
    cosine = cfg.param_scheduler[1]
    assert cosine['begin'] == 250
    assert cosine['begin'] + cosine['T_max'] == cosine['end'] == cfg.train_cfg.max_iters


def test_epoch_based_schedules_keep_their_epochs() -> None:
    cfg = make_config(batch_size=2)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12)
    cfg.param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11])]
    changes = scale_lr(cfg, world_size=1)
    assert [change.option for change in changes] == ['optim_wrapper.optimizer.lr']


def test_every_optimizer_of_several_is_scaled() -> None:
    cfg = make_config(batch_size=32)
    cfg.optim_wrapper = dict(
        constructor='Two', generator=dict(optimizer=dict(lr=1.0)), critic=dict(optimizer=dict(lr=4.0))
    )
    scale_lr(cfg, world_size=1)
    assert (cfg.optim_wrapper.generator.optimizer.lr, cfg.optim_wrapper.critic.optimizer.lr) == (0.5, 2.0)


def test_mmengine_does_not_scale_a_second_time() -> None:
    cfg = make_config(batch_size=2)
    scale_lr(cfg, world_size=1)
    assert cfg.auto_scale_lr.enable is False


def test_the_table_names_every_changed_option() -> None:
    cfg = make_config(batch_size=2)
    table = describe_changes(scale_lr(cfg, world_size=1), 64, 2)
    assert 'optim_wrapper.optimizer.lr' in table and '0.0001 -> 3.125e-06' in table
    assert 'param_scheduler.1.milestones' in table


def test_a_config_without_a_base_batch_is_refused_with_the_option_to_set() -> None:
    cfg = make_config()
    cfg.auto_scale_lr = None
    with pytest.raises(ValueError, match=r'auto_scale_lr=dict\(base_batch_size=N\)'):
        scale_lr(cfg, world_size=1)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'cubic', wanted one of \('linear', 'sqrt'\)"):
        scale_lr(make_config(rule='cubic'), world_size=1)


def test_a_batch_that_leaves_nothing_but_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match='warm-up of 250'):
        scale_lr(make_config(batch_size=64 * math.ceil(184375 / 200)), world_size=1)
