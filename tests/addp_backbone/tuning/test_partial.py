"""Frozen parts, norms alone and low-rank differences of every backbone: what is trained, computed and kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F

import pretrain.classification  # noqa: F401  (registers ClassifierViT)
from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.tuning.lora import LoRA, LoRALinear, add_lora, merge_lora
from addp_backbone.tuning.partial import PartlyTrainedViT, is_norm
from tools.benchmark.tuning import kept_bytes

ARCH = dict(width=24, depth=4, num_heads=3)
BACKBONES: dict[str, dict[str, Any]] = {
    'ADDPViT': dict(type='ADDPViT', arch=ARCH, img_size=64, window_size=3, out_indices=(1, 3)),
    'ADDPSegViT': dict(type='ADDPSegViT', arch=ARCH, img_size=64, out_indices=(1, 3)),
    'ClassifierViT': dict(type='ClassifierViT', arch=ARCH, img_size=64, final_norm=True),
    'vision_transformer': dict(type='TimmViT', model='test_vit', img_size=64, out_indices=(1, 3), window_size=3),
    'eva': dict(type='TimmViT', model='vit_tiny_patch16_dinov3_qkvb', img_size=64, out_indices=(1, 3)),
    'relpos': dict(type='TimmViT', model='test_vit_relpos', img_size=64, out_indices=(1, 3)),
}
MODES: dict[str, dict[str, Any]] = {
    'frozen': dict(frozen=True),
    'two blocks frozen': dict(frozen=2),
    'norms': dict(norms_only=True),
    'LoRA': dict(lora=dict(rank=2, alpha=4)),
    'LoRA with MLP behind two blocks': dict(lora=dict(rank=3, mlp=True), frozen=2),
}
CASES = [
    *(('ADDPViT', mode) for mode in MODES),
    *((name, mode) for name in ('ADDPSegViT', 'ClassifierViT') for mode in ('norms', 'LoRA')),
    ('vision_transformer', 'two blocks frozen'),
    ('vision_transformer', 'LoRA with MLP behind two blocks'),
    ('relpos', 'norms'),
]
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(name: str, **options: Any) -> PartlyTrainedViT:
    torch.manual_seed(0)
    backbone = MODELS.build(dict(BACKBONES[name], **options))
    for key, param in backbone.named_parameters():
        if 'gamma' in key:  # LayerScale begins so small that blocks would hardly count
            nn.init.ones_(param)
    return backbone


def outputs(backbone: nn.Module) -> list[torch.Tensor]:
    maps = backbone(IMAGES)
    return [maps] if isinstance(maps, torch.Tensor) else list(maps)


class Model(nn.Module):
    """A backbone and a head, as the optimizer's constructor wants them."""

    def __init__(self, backbone: PartlyTrainedViT) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.LazyLinear(1)

    def forward(self) -> torch.Tensor:
        return sum(self.head(x.flatten(1)[:, :999]).square().mean() for x in outputs(self.backbone))


def optimizer_of(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    cfg = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.3), constructor='ViTLayerDecayConstructor')
    return build_optim_wrapper(model, ConfigDict(cfg, paramwise_cfg=dict(decay_rate=0.5, **options))).optimizer


def randomise(model: nn.Module) -> None:
    """Gives low-rank differences values, as after training."""
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_B, std=0.05)


@pytest.mark.parametrize(('name', 'mode'), CASES)
def test_steps_with_weight_decay_move_what_is_trained_and_not_a_bit_of_the_rest(name: str, mode: str) -> None:
    model = Model(build(name, **MODES[mode])).train()
    model()  # gives the head its size
    before = copy.deepcopy(model.state_dict())
    optimizer = optimizer_of(model)
    for _ in range(2):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    trained = {key for key, param in model.named_parameters() if param.requires_grad}
    assert moved == trained, 'every trained parameter has a gradient, so that DDP needs no find_unused_parameters'
    assert {key for key in trained if not key.startswith('head.')} == {
        f'backbone.{key}' for key, _ in expected(model.backbone, MODES[mode])
    }


def expected(backbone: PartlyTrainedViT, mode: dict[str, Any]) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a mode trains, by the words of its documentation."""
    if mode.get('frozen') is True:
        return []
    stem = {
        id(p)
        for part in backbone.stem_parts()
        for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    }
    blocks = backbone.blocks_in_use()
    frozen = {id(p) for block in blocks[: mode.get('frozen', 0)] for p in block.parameters()} | stem
    rest = [(key, p) for key, p in backbone.named_parameters() if id(p) not in frozen]
    new = ('rel_pos_h', 'rel_pos_w', 'gamma_1', 'gamma_2', 'relative_position_bias_table')
    if isinstance(backbone, MODELS.get('TimmViT')):
        new = ('no such',)
    if 'lora' in mode:
        return [(key, p) for key, p in rest if key.endswith(('lora_A', 'lora_B', *new))]
    if mode.get('norms_only'):
        norms = {id(p) for module in backbone.modules() if is_norm(module) for p in module.parameters(recurse=False)}
        return [(key, p) for key, p in rest if id(p) in norms or key.endswith(new)]
    return rest


@pytest.mark.parametrize('name', BACKBONES)
def test_low_rank_differences_start_at_nothing_change_the_output_and_merge_into_the_plain_network(name: str) -> None:
    plain, adapted = build(name).eval(), build(name, lora=dict(rank=2, alpha=6, mlp=True)).eval()
    lora_names = adapted.state_dict().keys() - plain.state_dict().keys()
    assert {key.rpartition('.')[2] for key in lora_names} == {'lora_A', 'lora_B', 'lora_scale'}
    adapted.load_state_dict({**adapted.state_dict(), **plain.state_dict()})
    with torch.no_grad():
        start = outputs(plain)
        for got, wanted in zip(outputs(adapted), start, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        randomise(adapted)
        unmerged = outputs(adapted)
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(unmerged, start, strict=True))
        num_layers = sum(isinstance(module, LoRALinear) for module in adapted.modules())
        assert merge_lora(adapted) == num_layers >= 4 * len(adapted.blocks_in_use())
        plain.load_state_dict(adapted.state_dict())
        for got, wanted in zip(outputs(plain), unmerged, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['ADDPViT', 'vision_transformer'])
def test_gradients_with_activation_checkpointing_are_equal_and_an_adapted_layer_is_that_of_the_paper(name: str) -> None:
    gradients = []
    for with_cp in (False, True):
        model = Model(build(name, lora=dict(rank=2, alpha=6, mlp=True), with_cp=with_cp)).train()
        torch.manual_seed(1)
        randomise(model)
        torch.manual_seed(2)
        model().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if 'lora' in key})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)
    layer = next(module for module in model.modules() if isinstance(module, LoRALinear))
    x = torch.randn(3, layer.in_features)
    wanted = F.linear(x, layer.frozen_weight, layer.bias) + 6 / 2 * (x @ layer.lora_A.T @ layer.lora_B.T)
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(F.linear(x, layer.weight, layer.bias), wanted)


def test_attention_that_multiplies_by_the_weight_itself_takes_the_adapted_one() -> None:
    torch.manual_seed(0)
    block = timm.models.beit.Block(24, 3, qkv_bias=True)  # its attention calls F.linear(x, self.qkv.weight, ...)
    add_lora(block, LoRA(rank=2))
    x = torch.randn(2, 5, 24)
    before = block(x)
    block.attn.qkv.lora_B.data.normal_()
    after = block(x)
    assert (after - before).abs().max() > 1e-3
    merge_lora(block)
    torch.testing.assert_close(block(x), after, rtol=1e-5, atol=1e-5)


def test_bfloat16_autocast_trains_every_low_rank_difference() -> None:
    model = Model(build('ADDPViT', lora=dict(rank=2))).train()
    randomise(model)
    with torch.autocast('cpu', torch.bfloat16):
        loss = model()
    loss.backward()
    gradients = [p.grad for key, p in model.named_parameters() if 'lora' in key]
    assert gradients and all(g is not None and g.dtype == torch.float32 and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize('name', ['ADDPViT', 'vision_transformer'])
def test_low_rank_differences_have_the_learning_rate_and_the_weight_decay_of_the_layers_matrices(name: str) -> None:
    options: list[dict[str, Any]] = [{}, dict(lora=dict(rank=2))]
    settings = []
    for mode in options:
        model = Model(build(name, **mode))
        model()
        groups = {id(p): (g['lr'], g['weight_decay']) for g in optimizer_of(model).param_groups for p in g['params']}
        settings.append({key: groups[id(p)] for key, p in model.named_parameters() if id(p) in groups})
    for key, setting in settings[1].items():
        if key.endswith(('lora_A', 'lora_B')):
            assert setting == settings[0][key.rpartition('.')[0] + '.weight'] and setting[1] == 0.3


def test_frozen_blocks_keep_no_activations_and_stay_in_eval_mode() -> None:
    backbone = build('ADDPViT', frozen=3, drop_path_rate=0.5).train()
    assert [block.training for block in backbone.blocks] == [False, False, False, True]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        maps = backbone(IMAGES)
    assert not maps[0].requires_grad and maps[1].requires_grad
    last = {p.data_ptr() for p in backbone.blocks[3].parameters()}
    others = {p.data_ptr() for p in backbone.parameters()} - last
    assert kept and not others & {tensor.data_ptr() for tensor in kept}


def test_a_part_that_is_trained_keeps_less_for_the_backward_pass_than_everything() -> None:
    modes = ({}, dict(frozen=2), dict(lora=dict(rank=2), frozen=2), dict(frozen=True))
    everything, half, lora, nothing = (kept_bytes(build('ADDPViT', **mode).train(), IMAGES) for mode in modes)
    assert 0.6 * everything > max(half, lora) > nothing == 0


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(frozen=5), r'frozen must be True, False or a number of blocks in \[0, 4\], got 5'),
        (dict(frozen=-1), 'from 0 on, got -1'),
        (dict(frozen=True, norms_only=True), 'contradict each other'),
        (dict(norms_only=True, lora=dict(rank=2)), 'contradict each other'),
        (dict(frozen=4, lora=dict(rank=2)), 'nothing to train'),
        (dict(lora=dict(alpha=2)), 'needs rank'),
        (dict(lora=dict(rank=2, dropout=0.1)), 'nothing else'),
        (dict(lora=dict(rank=0)), 'lora.rank is 0'),
        (dict(lora=dict(rank=25)), 'has at most rank 24'),
        (dict(lora=dict(rank=2, alpha=-1)), 'lora.alpha is -1'),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build('ADDPViT', **options)


def test_a_checkpoint_of_another_scale_is_refused() -> None:
    trained = build('ADDPViT', lora=dict(rank=2, alpha=8)).state_dict()
    with pytest.raises(CheckpointError, match=r'lora_scale is 4 in the checkpoint.*alpha / rank = 1: set'):
        build('ADDPViT', lora=dict(rank=2)).load_state_dict(trained)
