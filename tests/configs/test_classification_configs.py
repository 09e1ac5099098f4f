"""Classification recipes: each parameter's learning rate and weight decay, the schedule's end, leaves at toy size."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from running import run_tool
from stopping import stopped_after
from tiny_classes import CLASSES, ROOT, small_leaf, write_classes

from addp_backbone.checkpoint.convert import read_checkpoint

LEAVES = (
    'finetune_base_100e',
    'finetune_base_100e_ema',
    'finetune_large_50e',
    'finetune_tiny',
    'linear_base',
    'linear_large',
    'linear_tiny',
)
# The published rule (docs/reference.md; MAE's code): name of a parameter within a block, whether it has weight decay.
BLOCK = {
    'norm1.weight': False,
    'norm1.bias': False,
    'attn.qkv.weight': True,
    'attn.qkv.bias': False,
    'attn.proj.weight': True,
    'attn.proj.bias': False,
    'norm2.weight': False,
    'norm2.bias': False,
    'mlp.fc1.weight': True,
    'mlp.fc1.bias': False,
    'mlp.fc2.weight': True,
    'mlp.fc2.bias': False,
}
STEM = {'cls_token': False, 'pos_embed': False, 'patch_embed.proj.weight': True, 'patch_embed.proj.bias': False}
HEAD = {'head.fc_norm.weight': False, 'head.fc_norm.bias': False, 'head.fc.weight': True, 'head.fc.bias': False}


@pytest.fixture(scope='module')
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp('classes'))


def build(name: str) -> tuple[torch.nn.Module, torch.optim.Optimizer, Config]:
    """Model and optimizer of a leaf, without memory for the weights."""
    cfg = Config.fromfile(ROOT / 'pretrain/configs' / f'{name}.py')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    cfg.optim_wrapper.type = 'OptimWrapper'  # that for mixed precision wants CUDA
    return model, build_optim_wrapper(model, cfg.optim_wrapper).optimizer, cfg


@pytest.mark.parametrize(
    ('name', 'depth', 'lr', 'decay'), [('finetune_base_100e', 12, 1e-3, 0.65), ('finetune_large_50e', 24, 2.5e-4, 0.8)]
)
def test_every_parameter_has_the_published_learning_rate_and_weight_decay(
    name: str, depth: int, lr: float, decay: float
) -> None:
    expected = {f'backbone.{part}': (lr * decay ** (depth + 1), 0.05 * decays) for part, decays in STEM.items()}
    for i, (part, decays) in itertools.product(range(depth), BLOCK.items()):
        expected[f'backbone.blocks.{i}.{part}'] = (lr * decay ** (depth - i), 0.05 * decays)
    expected |= {part: (lr, 0.05 * decays) for part, decays in HEAD.items()}
    model, optimizer, _ = build(name)
    of_group = {
        id(parameter): (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    found = {parameter_name: of_group[id(parameter)] for parameter_name, parameter in model.named_parameters()}
    assert found.keys() == expected.keys() and len(of_group) == len(expected)
    for parameter_name, factors in expected.items():
        assert found[parameter_name] == pytest.approx(factors, rel=1e-12), parameter_name
    assert optimizer.defaults['betas'] == (0.9, 0.999)


@pytest.mark.parametrize('name', ['linear_base', 'linear_large'])
def test_a_probe_trains_its_last_layer_by_lars_without_weight_decay(name: str) -> None:
    model, optimizer, cfg = build(name)
    assert type(optimizer).__name__ == 'LARS'
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
    assert trained == {id(parameter) for parameter in model.head.fc.parameters()}
    assert {(group['weight_decay'], group['always_adapt']) for group in optimizer.param_groups} == {
        (0.0, True),
        (0.0, False),
    }
    assert model.backbone.tokenizer_norm is not None and model.backbone.norm is not None
    assert (cfg.optim_wrapper.optimizer.lr, cfg.auto_scale_lr.base_batch_size, cfg.train_cfg.max_epochs) == (
        0.1,
        256,
        dict(linear_base=90, linear_large=50)[name],  # MAE
    )


@pytest.mark.parametrize(
    ('name', 'lr', 'epochs', 'warmup_epochs'),
    [('finetune_base_100e', 4e-3, 100, 20), ('finetune_large_50e', 1e-3, 50, 5)],
)
def test_the_schedule_at_batch_1024_ends_at_1e_6(name: str, lr: float, epochs: int, warmup_epochs: int) -> None:
    cfg = Config.fromfile(ROOT / 'pretrain/configs' / f'{name}.py')
    warmup, cosine = cfg.param_scheduler
    assert cfg.optim_wrapper.optimizer.lr * 1024 / cfg.auto_scale_lr.base_batch_size == pytest.approx(lr)
    assert lr * cosine.eta_min_ratio == pytest.approx(1e-6)
    assert cfg.train_cfg.max_epochs == epochs and warmup.end == cosine.begin == warmup_epochs


@pytest.mark.parametrize('name', LEAVES)
def test_a_leaf_trains_and_evaluates_at_toy_size(name: str, class_folders: Path, tmp_path: Path) -> None:
    leaf = small_leaf(tmp_path / 'leaf.py', name, class_folders)
    run_tool('train', leaf, '--work-dir', tmp_path / 'run', options=(*stopped_after(1), 'log_level=ERROR'))
    log = next((tmp_path / 'run').glob('*/vis_data/scalars.json')).read_text(encoding='utf-8')
    assert 'accuracy/top1' in log and 'accuracy/top5' in log
    checkpoint = read_checkpoint(tmp_path / 'run' / 'iter_1.pth')
    assert tuple(checkpoint['meta']['dataset_meta']['classes']) == CLASSES
    assert checkpoint['state_dict']['head.fc.weight'].shape[0] == len(CLASSES)
