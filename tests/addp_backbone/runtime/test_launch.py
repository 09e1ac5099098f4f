"""From a command line to the Runner: mistakes are found early and named, and what needs CUDA is replaced without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from running import ROOT, run_command_line, run_tool, toy_config

from addp_backbone.runtime.config_checks import LaunchError, check_data
from addp_backbone.runtime.distributed import choose_gpu, start_processes
from addp_backbone.runtime.launch import draw_predictions, fit_to_device, load_config, refuse_deterministic, set_resume
from addp_backbone.runtime.optim_wrappers import use_amp
from addp_backbone.runtime.runner import StageRunner
from addp_backbone.runtime.tf32 import apply_tf32_option, exact_float32


def test_a_missing_config_is_named_with_its_nearest_neighbour() -> None:
    with pytest.raises(LaunchError, match=r'did you mean addp_tiny_maskrcnn\.py'):
        load_config(str(ROOT / 'det_configs' / 'addp_tiny_maskrcn.py'))


@pytest.mark.parametrize(
    ('option', 'meant'),
    [
        ('trian_cfg.max_iters', 'train_cfg'),
        ('train_cfg.max_iter', 'max_iters'),
        ('model.backbone.drop_path_rte', 'drop_path_rate'),
    ],
)
def test_a_misspelt_option_is_refused_with_the_name_that_was_meant(option: str, meant: str) -> None:
    with pytest.raises(LaunchError, match=f'{option}.*did you mean {meant}'):
        load_config(str(ROOT / 'det_configs' / 'addp_tiny_maskrcnn.py'), {option: 1})


def test_options_replace_values_and_may_add_arguments_that_a_config_leaves_at_their_default(tmp_path: Path) -> None:
    options = {
        'train_cfg.max_iters': 3,
        'param_scheduler.0.end': 1,
        'model.backbone.with_cp': True,
        'find_unused_parameters': True,
    }
    cfg = load_config(str(ROOT / 'det_configs' / 'addp_tiny_maskrcnn.py'), options, str(tmp_path))
    assert (cfg.train_cfg.max_iters, cfg.param_scheduler[0].end, cfg.model.backbone.with_cp) == (3, 1, True)
    assert cfg.work_dir == str(tmp_path)


def data_config(root: Path, **changes: Any) -> Config:
    """A config with one data set within a wrapper."""
    dataset = dict(
        data_root=str(root),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        **changes,
    )
    return Config(dict(train_dataloader=dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset))))


def test_complete_data_passes(tiny_coco: Path) -> None:
    check_data(data_config(tiny_coco), 'train')


@pytest.mark.parametrize('gone', ['data_root', 'ann_file', 'data_prefix.img'])
def test_missing_data_is_refused_before_anything_is_built_with_the_option_that_points_elsewhere(
    gone: str, tiny_coco: Path
) -> None:
    cfg = data_config(tiny_coco)
    cfg.merge_from_dict({f'train_dataloader.dataset.dataset.{gone}': 'nowhere'})
    with pytest.raises(LaunchError, match=rf'--cfg-options train_dataloader\.dataset\.dataset\.{gone}=PATH'):
        check_data(cfg, 'train')


def test_without_cuda_sync_bn_becomes_bn_and_ddp_gets_no_device() -> None:
    norm = dict(type='SyncBN', requires_grad=True)
    cfg = Config(
        dict(
            model=dict(head=[dict(norm_cfg=norm)], neck=dict(norm_cfg=dict(norm))),
            launcher='pytorch',
            optim_wrapper=dict(type='AmpOptimWrapper', dtype='float16', optimizer=dict(lr=1)),
        )
    )
    fit_to_device(cfg, cuda=False)
    assert cfg.model.head[0].norm_cfg.type == cfg.model.neck.norm_cfg.type == 'BN'
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.optim_wrapper == dict(type='BFloat16OptimWrapper', optimizer=dict(lr=1))


def test_with_cuda_batch_norm_stays_synchronised_and_gradients_lie_in_ddps_buckets() -> None:
    cfg = Config(dict(model=dict(norm_cfg=dict(type='SyncBN')), launcher='pytorch'))
    fit_to_device(cfg, cuda=True)
    assert cfg.model.norm_cfg.type == 'SyncBN'
    mmengines = dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=False)
    assert cfg.model_wrapper_cfg == dict(mmengines, gradient_as_bucket_view=True)


@pytest.mark.parametrize(
    ('given', 'cuda', 'expected'),
    [
        (dict(), True, dict(type='AmpOptimWrapper', loss_scale='dynamic')),
        (dict(dtype='bfloat16'), True, dict(type='BFloat16OptimWrapper')),
        (dict(), False, dict(type='BFloat16OptimWrapper')),
    ],
)
def test_amp_is_float16_with_loss_scaling_on_cuda_and_bfloat16_elsewhere(
    given: dict, cuda: bool, expected: dict
) -> None:
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(lr=1), **given)))
    use_amp(cfg, cuda)
    assert cfg.optim_wrapper == dict(expected, optimizer=dict(lr=1))


@pytest.mark.parametrize('option', ['dtype=bfloat16', 'loss_scale.init_scale=512.0'])
def test_options_of_mixed_precision_go_with_amp_alone(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ['train', 'det/addp_base_maskrcnn', '--cfg-options', f'optim_wrapper.{option}']
    with pytest.raises(LaunchError, match='data_root is'):  # all names are right: the data are what is missing
        run_command_line(*command, '--amp')
    with pytest.raises(LaunchError, match=r'optim_wrapper\.\w+: there is no such option'):
        run_command_line(*command)


def test_a_checkpoint_to_resume_from_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r'iter_9\.pth: no such checkpoint'):
        set_resume(Config(dict(work_dir=str(tmp_path))), str(tmp_path / 'iter_9.pth'))


def test_resume_without_a_checkpoint_keeps_the_weights_a_config_starts_from(tmp_path: Path) -> None:
    cfg = Config(dict(work_dir=str(tmp_path), load_from='weights.pth', resume=False))
    set_resume(cfg, 'auto')
    assert (cfg.load_from, cfg.resume) == ('weights.pth', False)


def test_a_launcher_without_its_variables_is_refused_with_the_script_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(LaunchError, match=r'RANK.*tools/dist_train\.sh'):
        start_processes('pytorch')


def test_drawing_is_refused_for_a_task_without_overlays() -> None:
    with pytest.raises(LaunchError, match='--show-dir draws detections and segmentations'):
        draw_predictions(Config(dict(default_scope='mmengine')), 'overlays')


def test_the_tools_work_from_another_folder_without_the_project_on_the_path_and_report_mistakes_in_one_line(
    tmp_path: Path,
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    command = [
        sys.executable,
        str(ROOT / 'tools' / 'train.py'),
        str(ROOT / 'det_configs' / 'addp_tiny_maskrcnn.py'),
        '--cfg-options',
        'train_dataloader.dataset.data_root=nowhere',
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr.startswith("error: train_dataloader.dataset.data_root is 'nowhere'")
        and done.stderr.count('\n') == 1
    )
    assert done.stdout == ''


@pytest.mark.parametrize(
    ('task', 'metric', 'overlay'),
    [('det', 'coco/bbox_mAP', '000000000001.jpg'), ('seg', 'mIoU', 'test_0000.jpg_1.png')],
)
def test_training_then_testing_writes_metrics_and_overlays(
    task: str, metric: str, overlay: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = request.getfixturevalue(f'tiny_{task}_config')
    # --auto-scale-lr: batch 1 of 2, so twice the iterations; --amp: bfloat16.
    run_tool(
        'train',
        config,
        '--work-dir',
        tmp_path,
        '--amp',
        '--auto-scale-lr',
        options=('train_dataloader.batch_size=1', 'train_cfg.max_iters=3', 'auto_scale_lr.base_batch_size=2'),
    )
    trained = sorted(tmp_path.glob('iter_*.pth'), key=lambda path: path.stat().st_mtime_ns)[-1]
    assert trained.name == 'iter_6.pth'
    thresholds = ('model.test_cfg.rcnn.score_thr=0.0',) if task == 'det' else ()
    checkpoint = trained if task == 'det' else tmp_path  # a work dir stands for its latest checkpoint
    run_tool(
        'test',
        config,
        checkpoint,
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'metrics.json',
        '--show-dir',
        tmp_path / 'overlays',
        options=thresholds,
    )
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert 0 <= metrics[metric] <= 100
    assert (tmp_path / 'overlays' / overlay).is_file()


def test_testing_refuses_weights_of_another_model(tiny_seg_config: Path, tmp_path: Path) -> None:
    torch.save(dict(state_dict={'backbone.pos_embed': torch.zeros(1)}), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'does not fit the model.*Missing:.*backbone\.pos_embed \(1,\) instead of'):
        run_tool('test', tiny_seg_config, tmp_path / 'other.pth', '--work-dir', tmp_path)


def test_testing_asks_for_a_checkpoint_that_is_there(tiny_seg_config: Path, tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / 'iter_9.pth'):
        with pytest.raises(LaunchError, match=r'does not exist; training writes'):
            run_command_line('test', tiny_seg_config, missing)


def test_metrics_go_into_json_files_only(tiny_seg_config: Path, tmp_path: Path) -> None:
    (tmp_path / 'c.pth').touch()
    with pytest.raises(LaunchError, match=r'wanted a file that ends in \.json'):
        run_command_line('test', tiny_seg_config, tmp_path / 'c.pth', '--out', 'metrics.txt')


def test_a_slurm_task_with_a_gpu_of_its_own_takes_it() -> None:
    assert [choose_gpu('slurm', rank, 1) for rank in range(4)] == [0] * 4
    assert [choose_gpu('slurm', rank, 4) for rank in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize(('launcher', 'num_gpus'), [('pytorch', 1), ('slurm', 2)])
def test_more_processes_than_gpus_are_refused(launcher: str, num_gpus: int) -> None:
    with pytest.raises(LaunchError, match=f'it sees {num_gpus}. Start at most {num_gpus} processes'):
        choose_gpu(launcher, 2, num_gpus)


def test_the_gpu_is_handed_to_mmengine_by_the_launchers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    given = dict(SLURM_PROCID='3', SLURM_LOCALID='3', SLURM_NTASKS='4', MASTER_ADDR='localhost', LOCAL_RANK='')
    for name, value in dict(given, RANK='', WORLD_SIZE='', MASTER_PORT='29500').items():
        monkeypatch.setenv(name, value)
    assert start_processes('slurm') == 4
    assert (os.environ['RANK'], os.environ['LOCAL_RANK'], os.environ['SLURM_LOCALID']) == ('3', '0', '0')


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(SLURM_PROCID='0'), 'SLURM_LOCALID, SLURM_NTASKS not set; start with tools/slurm_train.sh'),
        (dict(SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_NTASKS='2'), 'asked for .*scontrol.*export MASTER_ADDR'),
    ],
)
def test_a_slurm_job_that_lacks_something_is_told_what(
    given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT', 'PATH'):
        monkeypatch.setenv(name, '')
    for name in ('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS', 'SLURM_NODELIST', 'MASTER_ADDR'):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=message):
        start_processes('slurm')


def test_deterministic_algorithms_are_refused_on_cuda_with_the_reason() -> None:
    cfg = Config(dict(randomness=dict(seed=0, deterministic=True)))
    refuse_deterministic(cfg, cuda=False)
    with pytest.raises(LaunchError, match='no deterministic kernel for the gradients of bicubic'):
        refuse_deterministic(cfg, cuda=True)


def test_tf32_is_off_where_float32_is_promised_and_an_option_of_training() -> None:
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    with exact_float32():
        assert [flag.allow_tf32 for flag in flags] == [False, False]
        apply_tf32_option(Config(dict(env_cfg=dict(tf32=True))))
        assert [flag.allow_tf32 for flag in flags] == [True, True]
    assert [flag.allow_tf32 for flag in flags] == before
    with pytest.raises(LaunchError, match=r"env_cfg\.tf32 is 'yes'"):
        apply_tf32_option(Config(dict(env_cfg=dict(tf32='yes'))))


def test_metrics_of_a_stage_send_their_results_over_the_network(tmp_path: Path) -> None:
    runner = StageRunner.from_cfg(toy_config(tmp_path))
    assert runner.build_evaluator(dict(type='ToyMetric')).metrics[0].collect_device == 'gpu'
