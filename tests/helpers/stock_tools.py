"""The train.py and test.py that the packages mmdet and mmseg bring, on a small leaf of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mmdet
from small_configs import small_config


def train_and_test(leaf: str, package: ModuleType, data: Path, folder: Path) -> str:
    """Trains two iterations and tests the checkpoint, given nothing but the installed project; returns the output."""
    cfg = small_config(leaf, data, folder)
    if package is mmdet:
        cfg.model.test_cfg.rcnn.score_thr = 0.0  # two iterations in, nothing is certain
    cfg.dump(folder / 'leaf.py')
    _run(package, 'train.py', folder, '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2')
    return _run(package, 'test.py', folder, str(folder / 'iter_2.pth'))


def _run(package: ModuleType, tool: str, work_dir: Path, *arguments: str) -> str:
    """Runs a tool outside the repository, where only the installed project can be imported; returns what it printed."""
    command = [
        sys.executable,
        str(Path(str(package.__file__)).parent / '.mim' / 'tools' / tool),
        str(work_dir / 'leaf.py'),
        *arguments,
    ]
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'} | {'OMP_NUM_THREADS': '1'}
    result = subprocess.run(command, cwd=work_dir, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    return result.stdout + result.stderr
