"""Runs tools within the test process, and a toy stage (a small network on random images) without a real model."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from torch import Tensor, nn

import addp_backbone  # noqa: F401  (registers hooks and samplers)
from addp_backbone.runtime.launch import fit_to_device, set_resume, use_safe_hooks
from addp_backbone.runtime.runner import StageRunner

ROOT = Path(__file__).resolve().parents[2]
_run_numbers = itertools.count()


def run_tool(name: str, *words: str | Path, options: tuple[str, ...] = ()) -> None:
    """Runs tools/``name``.py with a command line and lets its errors through; ``options`` are ``--cfg-options``."""
    # mmengine shares loggers, message hubs and visualizers between runs of one name within a process.
    run = f'run{next(_run_numbers)}'
    options = (f'experiment_name={run}', f'visualizer.name={run}', *options)
    run_command_line(name, *words, '--cfg-options', *options)


def run_command_line(name: str, *words: str | Path) -> int | None:
    """Runs tools/``name``.py as its ``main`` does, but lets its errors through."""
    tool = load_tool(name)
    return tool.run(tool.parse_args([*map(str, words)]))


def run_script(name: str, *words: str | Path) -> None:
    """Runs tools/``name`` as a user would; its output is shown if it fails."""
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parent), OMP_NUM_THREADS='1')
    done = subprocess.run(
        [str(ROOT / 'tools' / name), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


class Finished(NamedTuple):
    """What a command came to: exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_main(name: str, *words: str | Path) -> Finished:
    """Runs ``main`` of tools/``name``.py in this process, which saves the seconds that a process of its own imports."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = load_tool(name).main([*map(str, words)])
    return Finished(code, out.getvalue(), err.getvalue())


def load_tool(name: str) -> ModuleType:
    """Imports tools/``name``.py, which is no package."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def logged_losses(work_dir: Path) -> dict[int, dict[str, float]]:
    """Iteration -> what the run in ``work_dir`` logged for it, without times; later runs override earlier ones."""
    records: dict[int, dict[str, float]] = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime_ns):
        for line in file.read_text(encoding='utf-8').splitlines():
            record = json.loads(line)
            if 'loss' in record:
                records[record['step']] = {key: value for key, value in record.items() if 'time' not in key}
    return records


@DATASETS.register_module(force=True)
class ToyDataset(BaseDataset):
    """Seven samples, each a number."""

    def load_data_list(self) -> list[dict[str, Any]]:
        return [dict(value=float(index)) for index in range(7)]


@DATASETS.register_module(force=True)
class DamagedToyDataset(ToyDataset):
    """Seven samples, some of which cannot be read, and none while ``gone_file`` exists."""

    def __init__(self, bad: Any = (1, 4), gone_file: str = '', **options: Any) -> None:
        self.bad, self.gone_file = set(bad), gone_file
        super().__init__(**options)

    def prepare_data(self, idx: int) -> Any:
        if int(idx) in self.bad or (self.gone_file and Path(self.gone_file).exists()):
            raise OSError(f'sample {int(idx)} is truncated')
        return super().prepare_data(idx)


@TRANSFORMS.register_module(force=True)
class ToyNoise:
    """Draws from all three generators, as augmentations do."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        noise = torch.full((4,), results['value']) / 7 + torch.randn(4) + random.random() + float(np.random.rand())
        return dict(inputs=noise, index=int(results['sample_idx']))


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    """A network with dropout and batch norm; a regression on the sum of the inputs."""

    def __init__(self, bad_from: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.bad_from = bad_from
        self.calls = 0

    def forward(self, inputs: list[Tensor], index: Any = None, mode: str = 'tensor') -> Any:
        x = torch.stack(inputs)
        if mode == 'predict':
            torch.rand(3)  # what validation draws must not matter
            return [self.net(x).mean()]
        self.calls += 1
        factor = float('nan') if self.bad_from is not None and self.calls >= self.bad_from else 1.0
        return dict(loss=factor * (self.net(x)[:, 0] - x.sum(1)).square().mean())


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    """The mean prediction."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [float(sample) for sample in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return dict(mean=sum(results) / len(results))


@HOOKS.register_module(force=True)
class SignalItself(Hook):
    """Sends this process, or the launcher of the run, a signal in an iteration.

    Args:
        at: The iteration, counted from 1.
        number: The signal.
        rank: Which process does it.
        to_launcher: Whether tools/torchrun.py gets it; the iterations that follow are slow, as it takes a moment.
    """

    def __init__(self, at: int, number: int, rank: int = 0, to_launcher: bool = False) -> None:
        self.at, self.number, self.rank, self.to_launcher = at, number, rank, to_launcher

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if get_rank() == self.rank and runner.iter + 1 == self.at:
            target = os.getpid()
            if self.to_launcher:  # its child is torchrun, whose child this process is
                stat = Path(f'/proc/{os.getppid()}/stat').read_text()
                target = int(stat.rpartition(')')[2].split()[1])
            os.kill(target, self.number)
        if self.to_launcher and runner.iter + 1 >= self.at:
            time.sleep(0.3)


@HOOKS.register_module(force=True)
class KillOnce(Hook):
    """Kills this process in an iteration, unless the file ``flag`` says that it has done so before."""

    def __init__(self, at: int, rank: int, flag: str) -> None:
        self.at, self.rank, self.flag = at, rank, Path(flag)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if get_rank() == self.rank and runner.iter + 1 == self.at and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def write_toy_config(path: Path, **changes: Any) -> Path:
    """Writes :func:`toy_config` as a file that tools/train.py reads where tests/helpers is on the path."""
    cfg = toy_config(path.parent / 'unused', **changes)
    cfg.pop('work_dir')
    cfg.custom_imports = dict(imports=['addp_backbone', 'running'], allow_failed_imports=False)
    cfg.randomness = dict(seed=7)
    cfg.dump(path)
    return path


def toy_config(work_dir: Path, **changes: Any) -> Config:
    """Six iterations of the toy stage, validated and saved every second one."""
    pipeline = [dict(type='SeedAugmentation'), dict(type='ToyNoise')]
    loader = dict(batch_size=3, num_workers=0, dataset=dict(type='ToyDataset', pipeline=pipeline))
    cfg = Config(
        dict(
            model=dict(type='ToyModel'),
            work_dir=str(work_dir),
            experiment_name=f'toy{next(_run_numbers)}',
            train_dataloader=dict(loader, sampler=dict(type='SeededInfiniteSampler')),
            val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            val_evaluator=dict(type='ToyMetric'),
            val_cfg=dict(),
            train_cfg=dict(by_epoch=False, max_iters=6, val_interval=2),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.05), clip_grad=dict(max_norm=5.0)),
            param_scheduler=[dict(type='CosineAnnealingLR', by_epoch=False, T_max=6)],
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
                logger=dict(type='LoggerHook', interval=1),
            ),
            custom_hooks=[],
            log_processor=dict(by_epoch=False, window_size=1),
            randomness=dict(seed=None),
            log_level='ERROR',
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


def train_toy(cfg: Config, resume: str | None = None) -> StageRunner:
    """Trains as tools/train.py does."""
    set_resume(cfg, resume)
    use_safe_hooks(cfg, world_size=1)
    fit_to_device(cfg)
    runner = StageRunner.from_cfg(cfg)
    runner.train()
    return runner
