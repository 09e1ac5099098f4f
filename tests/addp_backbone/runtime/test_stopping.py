"""Training ends when its time is up, or when validations bring nothing more; resumed, it goes on as if unbroken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub
from mmengine.registry import METRICS
from running import load_tool, logged_losses, toy_config, train_toy, write_toy_config

from addp_backbone.checkpoint.storage import read_checkpoint
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.preemption import PREEMPTED
from addp_backbone.runtime.stopping import parse_duration

SCORES = {2: 1.0, 4: 3.0, 6: 2.0, 7: 2.1, 8: 2.5, 10: 2.9, 12: 9.0}


@METRICS.register_module(force=True)
class GivenScores(BaseMetric):
    """:data:`SCORES` by the iterations trained so far."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(score=SCORES[MessageHub.get_current_instance().get_info('iter') + 1])


def stopping_config(folder: Path, patience: int) -> Any:
    cfg = toy_config(folder)
    cfg.randomness = dict(seed=7)
    cfg.train_cfg.update(max_iters=12)
    cfg.val_evaluator = dict(type='GivenScores')
    cfg.default_hooks.checkpoint.update(save_best='score', rule='greater', interval=1)
    cfg.default_hooks.early_stopping = dict(
        type='StopWithoutGain', monitor='score', rule='greater', patience=patience, min_delta=0
    )
    return cfg


def test_training_stops_after_validations_without_gain_and_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    runner = train_toy(stopping_config(tmp_path, patience=3))
    assert runner.iter == 10, 'the fifth validation is the third without gain'
    assert [path.name for path in tmp_path.glob('best_*')] == ['best_score_iter_4.pth']
    assert read_checkpoint(tmp_path / 'best_score_iter_4.pth')['meta']['iter'] == 4


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    cut = stopping_config(tmp_path, patience=3)
    cut.train_cfg.max_iters = 7  # after three validations, one of them without gain
    train_toy(cut)
    runner = train_toy(stopping_config(tmp_path, patience=3), resume='auto')
    assert runner.iter == 10


def test_when_the_time_is_up_training_saves_ends_with_the_code_of_a_preemption_and_resumes(tmp_path: Path) -> None:
    config = write_toy_config(tmp_path / 'toy.py', **{'default_hooks.checkpoint.interval': 100})
    main = load_tool('train').main
    assert main([str(config), '--work-dir', str(tmp_path / 'whole')]) == 0
    slow = [dict(type='StopAfterTime', seconds=0.0)]
    timed = write_toy_config(tmp_path / 'timed.py', custom_hooks=slow, **{'default_hooks.checkpoint.interval': 100})
    assert main([str(timed), '--work-dir', str(tmp_path / 'run'), '--max-time', '1h']) == PREEMPTED == 85
    assert [path.name for path in (tmp_path / 'run').glob('iter_*')] == ['iter_1.pth']
    assert main([str(config), '--work-dir', str(tmp_path / 'run'), '--resume', '--max-time', '1h']) == 0
    assert logged_losses(tmp_path / 'run') == logged_losses(tmp_path / 'whole')


@pytest.mark.parametrize(('text', 'seconds'), [('8h', 28800), ('1h30m', 5400), ('45m', 2700), ('90s', 90)])
def test_durations_have_units(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize('text', ['90', '1:30:00', '', '0m', '2 h', '1.5h', '30m1h'])
def test_other_durations_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LaunchError, match='wanted hours, minutes and seconds such as 8h, 1h30m, 45m or 90s'):
        parse_duration(text)
