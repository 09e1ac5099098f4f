"""Layer-wise learning-rate decay: factors, weight-decay conventions, grouping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

from addp_backbone import ADDPViT, SimpleFeaturePyramid
from addp_backbone.networks.arch import get_arch

LEVELS = {
    'simfp_2': 'neck.levels.0',
    'simfp_3': 'neck.levels.1',
    'simfp_4': 'neck.levels.2',
    'simfp_5': 'neck.levels.3',
}


class _Model(nn.Module):
    """What the constructor needs of a detector, a segmentor or a classifier: a backbone, and other things."""

    def __init__(self, backbone: nn.Module, **others: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        for name, module in others.items():
            self.add_module(name, module)


class _Shard(nn.Module):
    """Names a module's parameters as FSDP does, and passes on what it does not have itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._fsdp_wrapped_module, name)


def _small_model(**backbone_options: object) -> _Model:
    backbone = ADDPViT(arch=dict(width=12, depth=3, num_heads=3), img_size=64, window_size=2, **backbone_options)
    head = nn.Sequential(nn.Conv2d(8, 8, 1), MODELS.build(dict(type='ChannelLN', num_channels=8)), nn.BatchNorm2d(8))
    return _Model(backbone, neck=SimpleFeaturePyramid(12, 8), head=head)


def _build(model: nn.Module, lr: float = 1.0, weight_decay: float | None = 0.1, **paramwise: object) -> OptimWrapper:
    optimizer = dict(type='AdamW', lr=lr) | ({} if weight_decay is None else dict(weight_decay=weight_decay))
    return build_optim_wrapper(
        model, ConfigDict(constructor='ViTLayerDecayConstructor', optimizer=optimizer, paramwise_cfg=paramwise)
    )


def _settings(model: nn.Module, wrapper: OptimWrapper, key: str) -> dict[str, float]:
    """The ``key`` of each parameter's group, by the parameter's name."""
    by_id = {id(param): group[key] for group in wrapper.optimizer.param_groups for param in group['params']}
    return {name: by_id[id(param)] for name, param in model.named_parameters() if id(param) in by_id}


def test_factors_equal_detectron2s_exactly(shared_dir: Path) -> None:
    golden = json.loads((shared_dir / 'golden' / 'vitdet_tiny.json').read_text(encoding='utf-8'))
    arch = dict(width=golden['embed_dim'], depth=golden['depth'], num_heads=golden['num_heads'])
    model = _Model(
        ADDPViT(arch, img_size=golden['img_size'], window_size=golden['window_size']),
        neck=SimpleFeaturePyramid(golden['embed_dim'], golden['out_channels']),
    )
    factors = _settings(model, _build(model, decay_rate=0.7), 'lr')
    for name, factor in golden['lr_factors'].items():
        if name.startswith('net.'):
            assert factors[name.replace('net.', 'backbone.')] == factor, name
        else:
            level = LEVELS[name.split('.')[0]]
            assert {value for ours, value in factors.items() if ours.startswith(level)} == {factor}, name
    assert len(factors) == len(golden['lr_factors']), 'every parameter has exactly one factor'


@pytest.mark.parametrize(('arch', 'decay_rate'), [('base', 0.7), ('large', 0.8), ('huge', 0.9)])
def test_factors_of_the_real_sizes_follow_from_the_depth(arch: str, decay_rate: float) -> None:
    depth = get_arch(arch).depth
    with torch.device('meta'):
        model = _Model(ADDPViT(arch), head=nn.Linear(2, 2))
    factors = _settings(model, _build(model, decay_rate=decay_rate), 'lr')
    assert factors['backbone.patch_embed.proj.weight'] == factors['backbone.pos_embed'] == decay_rate ** (depth + 1)
    for i in range(depth):
        assert factors[f'backbone.blocks.{i}.attn.rel_pos_h'] == decay_rate ** (depth - i)
    assert factors['head.weight'] == 1.0


def test_decay_rate_1_gives_every_parameter_the_same_rate() -> None:
    model = _small_model()
    assert set(_settings(model, _build(model, lr=3e-4, decay_rate=1.0), 'lr').values()) == {3e-4}


def test_vitdet_convention_spares_norms_and_position_embeddings_but_not_biases() -> None:
    model = _small_model(tokenizer_norm=True)
    decays = _settings(model, _build(model, decay_rate=0.7, no_weight_decay='norm_and_pos_embed'), 'weight_decay')
    spared = {name for name, value in decays.items() if value == 0}
    norms = {
        f'{name}.{kind}'
        for name, module in model.named_modules()
        for kind in ('weight', 'bias')
        if type(module).__name__ in ('LayerNorm', 'BatchNorm2d')
    }
    assert spared == norms | {'backbone.pos_embed'}
    assert {'backbone.tokenizer_norm.weight', 'head.2.weight', 'head.2.bias'} <= spared
    assert decays['backbone.blocks.0.attn.qkv.bias'] == decays['backbone.blocks.0.attn.rel_pos_h'] == 0.1


def test_channel_norms_of_pyramid_and_heads_decay_as_to_detectron2_they_are_no_layer_norms() -> None:
    model = _small_model()
    decays = _settings(model, _build(model, decay_rate=0.7), 'weight_decay')
    of_channels = [name for name, module in model.named_modules() if type(module).__name__ == 'LayerNorm2d']
    assert len(of_channels) == 9 + 1, "the pyramid's and the head's"
    assert {decays[f'{name}.{kind}'] for name in of_channels for kind in ('weight', 'bias')} == {0.1}


def test_vit_huge_of_vitdet_spares_nothing() -> None:
    model = _small_model()
    decays = _settings(model, _build(model, decay_rate=0.9, no_weight_decay='nothing'), 'weight_decay')
    assert set(decays.values()) == {0.1} and len(decays) == len(list(model.parameters()))


def test_mae_convention_spares_exactly_the_1d_parameters() -> None:
    model = _small_model()
    decays = _settings(model, _build(model, decay_rate=0.65, no_weight_decay='1d'), 'weight_decay')
    for name, param in model.named_parameters():
        assert decays[name] == (0.0 if param.ndim <= 1 else 0.1), name


def test_weight_decay_left_to_the_optimizers_default_still_spares_norms() -> None:
    model = _small_model()
    decays = _settings(model, _build(model, weight_decay=None, decay_rate=0.7), 'weight_decay')
    assert decays['backbone.blocks.0.norm1.weight'] == 0.0
    assert decays['backbone.blocks.0.attn.qkv.weight'] == 0.01  # torch's AdamW


def test_parameters_of_one_layer_share_a_group_and_every_parameter_is_in_exactly_one() -> None:
    model = _small_model()
    groups = _build(model, decay_rate=0.7).optimizer.param_groups
    assert len(groups) == 2 * (3 + 2)  # decayed or not, 3 blocks + embeddings + the rest
    assert sorted(id(p) for group in groups for p in group['params']) == sorted(id(p) for p in model.parameters())


def test_backbone_lr_mult_slows_the_backbone_alone() -> None:
    model = _small_model()
    before, after = (
        _settings(model, _build(model, decay_rate=0.7, **mult), 'lr') for mult in ({}, dict(backbone_lr_mult=0.1))
    )
    for name, lr in before.items():
        assert after[name] == pytest.approx(lr * (0.1 if name.startswith('backbone.') else 1)), name


def test_frozen_parameters_are_in_no_group() -> None:
    model = _small_model()
    for param in model.backbone.patch_embed.parameters():
        param.requires_grad_(False)
    names = _settings(model, _build(model, decay_rate=0.7), 'lr')
    assert set(names) == {name for name, param in model.named_parameters() if param.requires_grad}


def test_a_wrapped_model_gets_the_same_factors() -> None:
    model = _small_model(with_cp=True)
    wrapped = nn.Module()
    wrapped.module = model  # as DistributedDataParallel has it
    expected = _settings(model, _build(model, decay_rate=0.7), 'lr')
    assert _settings(model, _build(wrapped, decay_rate=0.7), 'lr') == expected
    assert expected['backbone.blocks.0.attn.qkv.weight'] == 0.7**3


def test_names_inserted_by_fsdp_do_not_hide_the_layer() -> None:
    model = _small_model()
    model.backbone = _Shard(model.backbone)
    factors = _settings(model, _build(model, decay_rate=0.7), 'lr')
    assert factors['backbone._fsdp_wrapped_module.blocks.1.attn.qkv.weight'] == 0.7**2
    assert factors['backbone._fsdp_wrapped_module.pos_embed'] == 0.7**4


def test_one_log_line_tells_extreme_rates_and_number_of_groups(caplog: pytest.LogCaptureFixture) -> None:
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        _build(_small_model(), lr=1e-4, decay_rate=0.5)
    finally:
        logger.removeHandler(caplog.handler)
    lines = [record.getMessage() for record in caplog.records if 'parameter groups' in record.getMessage()]
    assert len(lines) == 1
    assert '10 parameter groups' in lines[0] and '6.25e-06 to 0.0001' in lines[0]


@pytest.mark.parametrize(
    ('paramwise', 'message'),
    [
        (dict(), 'needs decay_rate'),
        (dict(decay_rate=0.7, layer_decay_rate=0.7), 'nothing else'),
        (dict(decay_rate=0.0), r'in \(0, 1\]'),
        (dict(decay_rate=1.5), r'in \(0, 1\]'),
        (dict(decay_rate=0.7, no_weight_decay='bias'), "one of .*'1d'"),
        (dict(decay_rate=0.7, backbone_lr_mult=0), r'backbone_lr_mult must be in \(0, 1\], got 0'),
        (dict(decay_rate=0.7, backbone_lr_mult='0.1'), 'backbone_lr_mult'),
    ],
)
def test_bad_options_are_refused_with_what_was_wanted(paramwise: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _build(_small_model(), **paramwise)


def test_a_backbone_that_cannot_tell_depths_is_refused() -> None:
    with pytest.raises(TypeError, match='get_layer_depth'):
        _build(_Model(nn.Conv2d(3, 3, 1)), decay_rate=0.7)
