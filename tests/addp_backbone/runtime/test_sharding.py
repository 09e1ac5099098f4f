"""FSDP on two processes gives what DDP gives: parameter groups, losses, gradient norms, checkpoints, resuming."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from sharded_training import NUM_ITERS, make_config, run_rank

from addp_backbone.checkpoint.integrity import verify
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.sharding import check_sharding


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes wrote."""
    folder = tmp_path_factory.mktemp('fsdp')
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    mp.spawn(run_rank, (str(folder), port), nprocs=2)
    return folder


@pytest.fixture(scope='module')
def result(folder: Path) -> dict[str, Any]:
    return torch.load(folder / 'rank0.pt', weights_only=False)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)


def test_weight_decay_groups_are_those_of_whole_parameters(result: dict[str, Any]) -> None:
    groups = result['groups']
    assert groups['fsdp'] == groups['ddp']
    decays = {name for name, (_, decay) in groups['fsdp'].items() if decay}
    assert 'backbone.blocks.0.attn.qkv.weight' in decays and 'head.bias' not in decays


def test_losses_and_the_norm_of_clipped_gradients_are_those_of_ddp(result: dict[str, Any]) -> None:
    records = {name: torch.tensor(values) for name, values in result['records'].items()}
    assert records['ddp'].shape == (NUM_ITERS, 2)
    torch.testing.assert_close(records['fsdp'], records['ddp'], rtol=1e-4, atol=1e-6)


def test_a_resumed_run_ends_with_the_bits_of_the_unbroken_one(folder: Path, result: dict[str, Any]) -> None:
    whole, resumed = load(folder / 'fsdp' / 'iter_4.pth'), load(folder / 'resumed' / 'iter_4.pth')
    assert result['records']['resumed'] == result['records']['fsdp'][2:]
    for name, weight in whole['state_dict'].items():
        assert torch.equal(weight, resumed['state_dict'][name]), name
    for name, state in whole['optimizer']['state'].items():
        for key in ('exp_avg', 'exp_avg_sq', 'step'):
            assert torch.equal(state[key], resumed['optimizer']['state'][name][key]), (name, key)


def test_checkpoints_hold_the_whole_state_and_are_signed(folder: Path) -> None:
    ours, ddps = load(folder / 'fsdp' / 'iter_4.pth'), load(folder / 'ddp' / 'iter_4.pth')
    for name, weight in ddps['state_dict'].items():
        torch.testing.assert_close(ours['state_dict'][name], weight, rtol=1e-3, atol=1e-5)
    assert ours['optimizer']['loss_scaler'] == ddps['optimizer']['loss_scaler']
    base = [load['optimizer']['base_param_settings']['lr'] for load in (ours, ddps)]
    assert base[0] == base[1]
    moments = ours['optimizer']['state']['head.weight']
    assert not torch.equal(moments['exp_avg'], moments['exp_avg_sq'])
    assert verify(folder / 'fsdp' / 'iter_4.pth')


def test_resuming_brings_the_loss_scale_back(result: dict[str, Any]) -> None:
    assert result['loss_scale'] == 1024 * 2**NUM_ITERS


def test_a_checkpoint_that_is_not_one_of_fsdp_or_not_whole_is_refused(result: dict[str, Any]) -> None:
    assert 'optimizer state lacks' in result['from_ddp']
    assert 'head.weight' in result['lacking'] and result['lacking'].startswith('CheckpointError')


def test_weights_that_are_not_finite_on_another_rank_are_not_saved(folder: Path, result: dict[str, Any]) -> None:
    assert result['not_finite'].startswith('BadLossError')
    assert not (folder / 'bad.pth').exists()


def test_results_are_gathered_without_a_common_working_directory(folder: Path) -> None:
    assert [load(folder / f'rank{rank}.pt')['mean_of_ranks'] for rank in range(2)] == [0.5, 0.5]


def test_averaged_weights_are_refused_before_training(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, sharded=True)
    cfg.custom_hooks = [dict(type='EMAHook')]
    with pytest.raises(LaunchError, match='EMAHook, which copies the whole model'):
        check_sharding(cfg)


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('strategy.state_dict_cfg=local', 'wanted full'),
        ('strategy.model_wrapper.use_orig_params=False', 'use_orig_params is False'),
    ],
)
def test_a_strategy_that_cannot_be_right_is_refused(option: str, message: str, tmp_path: Path) -> None:
    cfg = make_config(tmp_path, sharded=True)
    name, value = option.split('=')
    cfg.merge_from_dict({name: False if value == 'False' else value})
    with pytest.raises(LaunchError, match=message):
        check_sharding(cfg)


def test_mmengines_own_strategy_is_replaced() -> None:
    cfg = Config(dict(strategy=dict(type='FSDPStrategy')))
    check_sharding(cfg)
    assert cfg.strategy.type == 'StageFSDPStrategy'


@pytest.mark.parametrize('runner', [{}, dict(runner_type='FlexibleRunner')])
def test_a_strategy_has_the_runner_that_reads_it(runner: dict[str, str]) -> None:
    cfg = Config(dict(strategy=dict(type='FSDPStrategy'), **runner))
    check_sharding(cfg)
    assert cfg.runner_type == 'StageFlexibleRunner'


def test_a_sharded_training_without_processes_is_refused_with_the_command_to_use() -> None:
    cfg = Config(dict(strategy=dict(type='FSDPStrategy'), launcher='none'))
    with pytest.raises(LaunchError, match=r'tools/dist_train\.sh CONFIG PROCESSES'):
        check_sharding(cfg)
