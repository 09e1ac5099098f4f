"""Curves beside the log: TensorBoard in every task, W&B and MLflow where they are wanted and installed."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from running import load_tool, toy_config, train_toy, write_toy_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.curves import has_wandb_key, use_curves
from addp_backbone.runtime.runner import StageRunner

ROOT = Path(__file__).parents[3]
BASES = ['det_configs/_base_/mmdet.py', 'seg_configs/_base_/mmseg.py', 'pretrain/configs/_base_/runtime.py']


def toy(work_dir: Path, *names: str) -> Config:
    cfg = toy_config(work_dir)
    cfg.default_hooks.logger.log_metric_by_epoch = False  # as all configs have it
    cfg.visualizer = dict(type='Visualizer', name=cfg.experiment_name, vis_backends=[dict(type='LocalVisBackend')])
    use_curves(cfg, names)
    return cfg


def written(work_dir: Path) -> list[dict[str, Any]]:
    lines = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize('base', BASES)
def test_every_task_writes_tensorboards_files(base: str) -> None:
    cfg = Config.fromfile(ROOT / base)
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']


def test_tensorboard_shows_the_numbers_of_the_log_over_iterations(tmp_path: Path) -> None:
    runner = train_toy(toy(tmp_path, 'tensorboard', 'tensorboard'))
    runner.visualizer.close()
    (events,) = tmp_path.glob('*/vis_data/events.out.tfevents.*')
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    losses = {event.step: event.value for event in accumulator.Scalars('loss')}
    assert losses == pytest.approx({line['step']: line['loss'] for line in written(tmp_path) if 'loss' in line})
    assert [event.step for event in accumulator.Scalars('mean')] == [2, 4, 6], 'validations stand at their iteration'


def test_a_config_without_a_visualizer_keeps_the_log_and_gets_the_back_end(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path)
    use_curves(cfg, ['tensorboard'])
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']


@pytest.mark.parametrize(('name', 'package'), [('wandb', 'wandb'), ('mlflow', 'mlflow')])
def test_a_missing_package_is_an_error_before_training(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        'addp_backbone.runtime.curves.find_spec', lambda asked: None if asked == package else find(asked)
    )
    config = write_toy_config(tmp_path / 'toy.py')
    tool = load_tool('train')
    args = tool.parse_args([str(config), '--work-dir', str(tmp_path / 'work'), '--log-to', name])
    with pytest.raises(LaunchError, match=f'the package {package} is not installed: pip install {package}'):
        tool.run(args)
    assert not (tmp_path / 'work').exists()


def test_a_back_end_that_the_config_names_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('addp_backbone.runtime.curves.find_spec', lambda asked: None)
    cfg = toy_config(tmp_path, visualizer=dict(type='Visualizer', vis_backends=[dict(type='WandbVisBackend')]))
    with pytest.raises(LaunchError, match='pip install wandb'):
        use_curves(cfg)


class RecordingWandb:
    """Stands for the module wandb: keeps what is logged."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.config = self
        self.metrics: list[Any] = []

    def init(self, **options: Any) -> None:
        self.options = options

    def define_metric(self, *words: Any, **options: Any) -> None:
        self.metrics.append((words, options))

    def update(self, *words: Any, **options: Any) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.logged.append({})


def test_wandb_gets_numbers_over_iterations_and_stays_offline_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = RecordingWandb()
    monkeypatch.setitem(sys.modules, 'wandb', wandb)  # type: ignore[arg-type]
    for name, value in {'NETRC': str(tmp_path / 'netrc'), 'WANDB_API_KEY': '', 'WANDB_MODE': ''}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv('WANDB_MODE')
    (tmp_path / 'netrc').write_text('machine api.wandb.ai login user password secret\n')
    assert has_wandb_key()
    (tmp_path / 'netrc').unlink()
    assert not has_wandb_key()
    backend = VISBACKENDS.build(dict(type='WandbCurves', save_dir=str(tmp_path / 'work' / 'now' / 'vis_data')))
    backend.add_scalars({'loss': torch.tensor(0.5), 'top': np.float32(2), 'name': 'x', 'shape': torch.ones(2)}, step=7)
    backend.add_config(Config(dict(a=1)))
    backend.close()
    assert os.environ['WANDB_MODE'] == 'offline'
    assert wandb.options['group'] == 'work' and wandb.options['project'] == 'addp-transfer'
    assert wandb.logged == [{'loss': 0.5, 'top': 2.0, 'iteration': 7}, {}]
    assert wandb.metrics == [(('*',), {'step_metric': 'iteration'})]


def test_mlflow_writes_the_numbers_of_the_log_into_the_work_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip('mlflow', reason='mlflow is not installed')
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    runner: StageRunner = train_toy(toy(tmp_path / 'work', 'mlflow'))
    runner.visualizer.close()
    client = mlflow.MlflowClient(f'sqlite:///{tmp_path}/work/mlflow/mlflow.db')
    (run,) = client.search_runs([client.get_experiment_by_name('addp-transfer').experiment_id])
    losses = {point.step: point.value for point in client.get_metric_history(run.info.run_id, 'loss')}
    assert losses == pytest.approx(
        {line['step']: line['loss'] for line in written(tmp_path / 'work') if 'loss' in line}
    )
    assert run.data.params['optim_wrapper.optimizer.lr'] == '0.05' and run.info.run_name == 'work'
