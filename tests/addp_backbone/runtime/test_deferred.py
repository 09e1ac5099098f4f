"""Losses are read several iterations at once: the log is the same, and a bad loss is named as if read at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from running import logged_losses, toy_config, train_toy
from torch import nn

from addp_backbone.runtime.deferred import DeferredInfoHook, KeptNorm, PendingScalars
from addp_backbone.runtime.saving import BadLossError
from tools.benchmark.device_ops import DeviceOps


def rare_looks(folder: Path, **changes: Any):
    """The toy run, whose losses are read every tenth iteration, or when somebody needs them."""
    return toy_config(
        folder,
        **{
            'default_hooks.runtime_info': dict(type='DeferredInfoHook', interval=10),
            'default_hooks.logger.interval': 50,
            'custom_hooks': [dict(type='StopOnBadLoss', interval=10)],
            **changes,
        },
    )


def test_the_log_of_a_run_that_reads_rarely_is_that_of_one_that_always_reads(tmp_path: Path) -> None:
    window = {'default_hooks.logger.interval': 3, 'log_processor.window_size': 3, 'randomness.seed': 7}
    train_toy(toy_config(tmp_path / 'always', **window))
    train_toy(rare_looks(tmp_path / 'rarely', **window))
    always, rarely = logged_losses(tmp_path / 'always'), logged_losses(tmp_path / 'rarely')
    assert len(always) == 2 and rarely == always


def test_every_training_reads_that_way_and_on_a_cpu_in_every_iteration(tmp_path: Path) -> None:
    runner = train_toy(toy_config(tmp_path))
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, DeferredInfoHook)]
    assert hook.pending.interval is None
    assert len(runner.message_hub.get_scalar('train/grad_norm').data[0]) == 6


def test_a_bad_loss_that_is_read_late_names_its_own_iteration_and_nothing_is_saved_after_it(tmp_path: Path) -> None:
    with pytest.raises(BadLossError, match=r'iteration 3 loss is nan.*iter_2\.pth'):
        train_toy(rare_looks(tmp_path, **{'model.bad_from': 3}))
    assert [path.name for path in tmp_path.glob('iter_*')] == ['iter_2.pth']


def test_a_bad_loss_is_found_at_the_end_of_a_run_that_saves_nothing(tmp_path: Path) -> None:
    options = {
        'model.bad_from': 5,
        'default_hooks.checkpoint': dict(type='SafeCheckpointHook', interval=-1, save_last=False, by_epoch=False),
        'train_cfg.val_interval': 100,
    }
    with pytest.raises(BadLossError, match='iteration 5 loss is nan'):
        train_toy(rare_looks(tmp_path, **options))


def test_an_error_that_follows_from_a_bad_loss_is_reported_as_the_bad_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = rare_looks(tmp_path, **{'model.bad_from': 3})
    step = OptimWrapper.update_params

    def fail_on_nan(self: OptimWrapper, loss: torch.Tensor, **options: Any) -> None:
        if not torch.isfinite(loss):
            fail_on_nan.seen += 1  # type: ignore[attr-defined]
            if fail_on_nan.seen == 2:  # type: ignore[attr-defined]
                raise ValueError('boxes of a model whose weights are not finite')
        step(self, loss, **options)

    fail_on_nan.seen = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(OptimWrapper, 'update_params', fail_on_nan)
    cfg.default_hooks.checkpoint.interval = cfg.train_cfg.val_interval = 100
    with pytest.raises(BadLossError, match='iteration 3 loss is nan'):
        train_toy(cfg)


def test_numbers_of_several_iterations_cost_one_wait() -> None:
    values = torch.arange(4.0)
    ops, pending = DeviceOps([values]), PendingScalars(interval=2)
    with ops:
        for iteration in range(2):
            assert not pending.are_due()
            pending.add(iteration, dict(loss=values[iteration], acc=values[2 + iteration : 3 + iteration]))
            assert ops.num_waits == 0
        assert pending.are_due()
        first, second = pending.read()
    assert ops.num_waits == 1
    assert first == (0, dict(loss=0.0, acc=2.0)) and second == (1, dict(loss=1.0, acc=3.0))
    assert pending.read() == []


def test_a_number_that_is_overwritten_afterwards_was_kept() -> None:
    scale, pending = torch.tensor(4.0), PendingScalars(interval=5)
    pending.add(0, dict(scale=scale))
    scale.mul_(0.5)
    assert pending.read()[0].values == dict(scale=4.0)


def test_an_optimizer_step_whose_norm_is_kept_does_not_wait() -> None:
    layer = nn.Linear(3, 3)
    wrapper = OptimWrapper(torch.optim.AdamW(layer.parameters(), foreach=True), clip_grad=dict(max_norm=0.1))
    wrapper.clip_func = KeptNorm(wrapper.clip_func)
    wrapper.update_params(layer(torch.ones(2, 3)).sum())
    wanted = wrapper.clip_func.take()
    ops = DeviceOps(layer.parameters())
    with ops:
        wrapper.update_params(layer(torch.ones(2, 3)).sum())
    assert ops.num_waits == 0
    assert wanted is not None and wanted > 0.1 and wrapper.clip_func.take() is not None
    assert wrapper.clip_func.take() is None
