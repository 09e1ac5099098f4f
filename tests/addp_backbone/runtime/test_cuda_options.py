"""What CUDA runs faster with is switched on there, changes no number, and gives way to the config."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS
from running import ROOT, toy_config, train_toy
from torch import nn

from addp_backbone.runtime.cuda_options import use_cuda_options
from addp_backbone.runtime.launch import fit_to_device, load_config
from addp_backbone.runtime.optim_wrappers import keep_implementation
from addp_backbone.runtime.tf32 import evaluation_precision


def settings(**given: Any) -> Config:
    return Config(
        dict(
            model=dict(data_preprocessor=dict(type='ImgDataPreprocessor')),
            train_dataloader=dict(num_workers=2),
            val_dataloader=dict(num_workers=0),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0)),
            launcher='pytorch',
            **given,
        )
    )


def test_on_cuda_batches_are_pinned_copies_do_not_block_and_adamw_is_one_kernel() -> None:
    cfg = settings()
    fit_to_device(cfg, cuda=True)
    assert cfg.train_dataloader.pin_memory and 'pin_memory' not in cfg.val_dataloader
    assert cfg.model.data_preprocessor.non_blocking
    assert cfg.optim_wrapper.optimizer.fused
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=False,
        gradient_as_bucket_view=True,
    )


def test_without_cuda_none_of_it_is_switched_on() -> None:
    cfg = settings()
    use_cuda_options(cfg, cuda=False)
    assert cfg.to_dict() == settings().to_dict()


def test_what_a_config_says_stays() -> None:
    cfg = settings(model_wrapper_cfg=dict(gradient_as_bucket_view=False))  # mmengine's default type
    cfg.train_dataloader.pin_memory = False
    cfg.model.data_preprocessor.non_blocking = False
    cfg.optim_wrapper.optimizer.fused = False
    use_cuda_options(cfg, cuda=True)
    assert not cfg.train_dataloader.pin_memory and not cfg.model.data_preprocessor.non_blocking
    assert not cfg.optim_wrapper.optimizer.fused and not cfg.model_wrapper_cfg.gradient_as_bucket_view


@pytest.mark.parametrize(
    ('change', 'reason'),
    [(dict(type='SGD', lr=1.0), 'no fused kernel was compared'), (dict(type='AdamW', foreach=True), 'they exclude')],
)
def test_other_optimizers_and_a_chosen_implementation_are_left_alone(change: dict[str, Any], reason: str) -> None:
    cfg = settings()
    cfg.optim_wrapper.optimizer = change
    use_cuda_options(cfg, cuda=True)
    assert 'fused' not in cfg.optim_wrapper.optimizer, reason


def test_with_shards_optimizer_and_wrapper_stay_as_they_are() -> None:
    cfg = settings(strategy=dict(type='StageFSDPStrategy'))
    use_cuda_options(cfg, cuda=True)
    assert 'fused' not in cfg.optim_wrapper.optimizer and 'model_wrapper_cfg' not in cfg


@pytest.mark.parametrize(
    'config',
    [
        'det_configs/addp_base_maskrcnn.py',
        'seg_configs/addp_base_upernet.py',
        'pretrain/configs/addp_base_1600e.py',
        'pretrain/configs/finetune_base_100e.py',
    ],
)
def test_the_published_configs_get_all_of_it(config: str) -> None:
    cfg = load_config(str(ROOT / config))
    fit_to_device(cfg, cuda=True)
    assert cfg.train_dataloader.pin_memory and cfg.optim_wrapper.optimizer.fused
    if config.startswith('det'):  # mmseg's preprocessor has no such option, and pre-training's never blocks
        assert cfg.model.data_preprocessor.non_blocking


def test_a_resumed_optimizer_keeps_the_kernels_of_this_run_and_the_numbers_of_the_other() -> None:
    def steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter, count: int) -> None:
        for i in range(count):
            weight.grad = torch.full_like(weight, 0.1 + i)
            optimizer.step()

    weights = [nn.Parameter(torch.ones(5)) for _ in range(2)]
    slow = torch.optim.AdamW([weights[0]], lr=0.1)
    quick = torch.optim.AdamW([weights[1]], lr=0.1, fused=True)
    keep_implementation(quick)
    steps(slow, weights[0], 3)
    quick.load_state_dict(copy.deepcopy(slow.state_dict()))
    assert quick.param_groups[0]['fused'] is True
    with torch.no_grad():
        weights[1].copy_(weights[0])
    steps(slow, weights[0], 2)
    steps(quick, weights[1], 2)
    torch.testing.assert_close(weights[1], weights[0])


def test_a_run_begun_with_the_slower_step_resumes_with_the_fused_one(tmp_path: Path) -> None:
    options = {'optim_wrapper.optimizer': dict(type='AdamW', lr=0.01)}
    train_toy(toy_config(tmp_path, **options))
    latest = str(sorted(tmp_path.glob('iter_*.pth'))[-1])
    options['optim_wrapper.optimizer'] = dict(type='AdamW', lr=0.01, fused=True)
    cfg = toy_config(tmp_path, **options)
    cfg.update(resume=True, load_from=latest)
    cfg.train_cfg.max_iters += 2
    assert all(group['fused'] for group in train_toy(cfg).optim_wrapper.optimizer.param_groups)


def test_gradients_in_their_buckets_are_the_same_gradients(tmp_path: Path) -> None:
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/rendezvous', rank=0, world_size=1)
    try:
        gradients = []
        for view in (False, True):
            torch.manual_seed(0)
            model = MMDistributedDataParallel(nn.Linear(4, 3), gradient_as_bucket_view=view)
            for _ in range(2):  # the second gathers on top of the first
                model(torch.ones(2, 4)).square().sum().backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class WithBackbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.backbone(x)
        return features, self.head(features)


@pytest.mark.parametrize(
    ('name', 'tf32', 'dtype'),
    [('fp32', False, None), ('tf32', True, None), ('bf16', True, torch.bfloat16), ('fp16', True, torch.float16)],
)
def test_evaluation_computes_the_backbone_in_the_named_precision_and_leaves_no_trace(
    name: str, tf32: bool, dtype: torch.dtype | None
) -> None:
    torch.manual_seed(0)
    model, x = WithBackbone(), torch.rand(3, 2)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    wanted = model(x)[0]
    with evaluation_precision(name, model):
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
        features, out = model(x)
    assert features.dtype == out.dtype == torch.float32
    if dtype is not None:
        assert torch.equal(features, features.to(dtype).float()) and not torch.equal(features, wanted)
        torch.testing.assert_close(features, wanted, rtol=0.02, atol=0.02)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    assert torch.equal(model(x)[0], wanted)


def test_an_unknown_precision_is_refused_with_those_that_there_are() -> None:
    refused = pytest.raises(ValueError, match="'fp8', wanted one of fp32, tf32, bf16, fp16")
    with refused, evaluation_precision('fp8', WithBackbone()):
        pass


def test_cudnn_measures_in_training_but_not_in_validation_whose_images_have_many_sizes() -> None:
    hook = HOOKS.build(dict(type='BenchmarkWhileTraining'))
    runner = SimpleNamespace(_train_loop=object())
    try:
        seen = []
        for event in (hook.before_train, hook.before_val, hook.after_val, hook.after_train):
            event(runner)
            seen.append(torch.backends.cudnn.benchmark)
    finally:
        torch.backends.cudnn.benchmark = False
    assert seen == [True, False, True, False]
    cfg = load_config(str(ROOT / 'seg_configs/addp_base_upernet.py'))
    assert cfg.default_hooks.benchmark.type == 'BenchmarkWhileTraining'
