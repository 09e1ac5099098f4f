"""Two processes on leaves: FSDP on ViT-L's, DDP on TimmViT's, evaluation of a segmentor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.registry import MODELS, init_default_scope
from running import ROOT, logged_losses, run_script, run_tool
from small_configs import REPOSITORY, small_config, write_timm_leaf


def test_fsdp_leaf_trains_on_two_processes_and_saves_whole_weights(tiny_coco: Path, tmp_path: Path) -> None:
    cfg = small_config('det_configs/addp_large_maskrcnn_fsdp.py', tiny_coco, tmp_path)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.dump(tmp_path / 'leaf.py')
    result = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node=2',
            str(REPOSITORY / 'tools' / 'train.py'),
            str(tmp_path / 'leaf.py'),
            '--launcher',
            'pytorch',
            '--work-dir',
            str(tmp_path),
            '--cfg-options',
            'strategy.model_wrapper.device_id=cpu',
        ],
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    assert 'learning rates 3.28e-05 to 0.0001' in result.stdout + result.stderr, (
        'names with wrappers in them still tell their layer'
    )
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    weights = torch.load(tmp_path / 'iter_1.pth', weights_only=False)['state_dict']
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


def test_two_processes_train_the_same_weights(tiny_ade, tmp_path):
    leaf = write_timm_leaf('test_vit', tiny_ade, tmp_path)
    subprocess.run(
        [str(ROOT / 'tools/dist_train.sh'), str(leaf), '2', '--work-dir', str(tmp_path / 'two')],
        check=True,
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)),
        capture_output=True,
        timeout=300,
    )
    assert len(logged_losses(tmp_path / 'two')) == 4


def test_two_processes_measure_the_miou_of_one_on_an_odd_number_of_images(
    tiny_seg_config: Path, tmp_path: Path
) -> None:
    run_tool('train', tiny_seg_config, '--work-dir', tmp_path)
    checkpoint = tmp_path / 'iter_4.pth'
    run_script('dist_test.sh', tiny_seg_config, checkpoint, '2', '--work-dir', tmp_path, '--out', tmp_path / 'two.json')
    run_tool('test', tiny_seg_config, checkpoint, '--work-dir', tmp_path, '--out', tmp_path / 'one.json')
    one, two = (json.loads((tmp_path / name).read_text()) for name in ('one.json', 'two.json'))
    assert one == two and one['mIoU'] > 0
