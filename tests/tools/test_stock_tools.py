"""The train.py and test.py that mmdet and mmseg package run our leaves, given nothing but our installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mmdet
import mmseg
import pytest
from small_configs import small_config

DETECTION = ('det_configs/addp_tiny_maskrcnn.py', 'tiny_coco', mmdet, 'coco/bbox_mAP')
SEGMENTATION = ('seg_configs/addp_tiny_upernet.py', 'tiny_ade', mmseg, 'mIoU')
TIMM_DETECTION = ('det_configs/timm_maskrcnn.py', *DETECTION[1:])
TIMM_SEGMENTATION = ('seg_configs/timm_upernet.py', *SEGMENTATION[1:])


@pytest.mark.parametrize(
    ('leaf', 'data', 'package', 'metric'),
    [DETECTION, SEGMENTATION, TIMM_DETECTION, TIMM_SEGMENTATION],
    ids=['mmdet', 'mmseg', 'mmdet, timm', 'mmseg, timm'],
)
def test_stock_tools_train_two_iterations_and_test_the_checkpoint(
    leaf: str, data: str, package: ModuleType, metric: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    cfg = small_config(leaf, request.getfixturevalue(data), tmp_path)
    if package is mmdet:
        cfg.model.test_cfg.rcnn.score_thr = 0.0  # two iterations in, nothing is certain
    cfg.dump(tmp_path / 'leaf.py')
    _run(package, 'train.py', tmp_path, '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2')
    assert metric in _run(package, 'test.py', tmp_path, str(tmp_path / 'iter_2.pth'))


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
