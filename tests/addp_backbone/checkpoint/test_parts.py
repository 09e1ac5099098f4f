"""Files with several networks, and transformers' names: the right ViT is converted, or the file is refused with why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor

from addp_backbone.checkpoint.convert import convert_state_dict
from addp_backbone.checkpoint.errors import CheckpointError

WIDTH, DEPTH, SIDE = 32, 2, 32
SMALL = dict(
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=2,
    image_size=SIDE,
    patch_size=8,
    layer_norm_eps=1e-6,
)


def vit_weights(seed: int, cls: bool = True) -> dict[str, Tensor]:
    """A small plain ViT by timm's names."""
    torch.manual_seed(seed)
    options = dict(img_size=SIDE, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=2, num_classes=0)
    return timm.models.VisionTransformer(**options, class_token=cls, global_pool='').state_dict()


def named(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights with a prefix in front of their names."""
    return {prefix + name: tensor for name, tensor in weights.items()}


TRAINED, AVERAGED = vit_weights(0), vit_weights(1)
HEAD = torch.ones(2, WIDTH)
TWO_NETWORKS: dict[str, Callable[[], dict[str, Any]]] = {
    'timm train': lambda: {'state_dict': TRAINED, 'state_dict_ema': AVERAGED, 'epoch': 3},
    'DINO': lambda: {
        'student': {**named(TRAINED, 'module.backbone.'), 'module.head.mlp.0.weight': HEAD},
        'teacher': {**named(AVERAGED, 'backbone.'), 'head.mlp.0.weight': HEAD},
    },
    'DINO, flat': lambda: {**named(TRAINED, 'student.backbone.'), **named(AVERAGED, 'teacher.backbone.')},
    'MoCo v3': lambda: {
        'state_dict': {**named(TRAINED, 'module.base_encoder.'), **named(AVERAGED, 'module.momentum_encoder.')}
    },
    'I-JEPA': lambda: {'encoder': named(TRAINED, 'module.'), 'target_encoder': named(AVERAGED, 'module.')},
    'Lightning': lambda: {
        'state_dict': {**named(TRAINED, 'student_backbone.'), **named(AVERAGED, 'teacher_backbone.')}
    },
}


def is_of(report: Any, weights: dict[str, Tensor]) -> bool:
    """Whether the trunk is that of some weights."""
    name = 'blocks.1.mlp.fc1.weight'
    return report.missing == [] and torch.equal(report.state_dict[name], weights[name])


@pytest.mark.parametrize('kind', TWO_NETWORKS)
def test_a_file_with_two_vits_asks_which_one_and_lists_them(kind: str) -> None:
    with pytest.raises(CheckpointError, match=r'holds 2 ViTs.*\(averaged\).*--prefix, or --ema'):
        convert_state_dict(TWO_NETWORKS[kind]())


@pytest.mark.parametrize('kind', TWO_NETWORKS)
def test_ema_takes_the_averaged_one_and_says_what_is_left_out(kind: str) -> None:
    report = convert_state_dict(TWO_NETWORKS[kind](), averaged=True)
    assert is_of(report, AVERAGED)
    assert any('not of the part' in reason for reason in report.dropped.values())


@pytest.mark.parametrize(
    ('kind', 'prefix', 'wanted'),
    [
        ('timm train', 'state_dict', TRAINED),
        ('timm train', 'state_dict_ema.', AVERAGED),
        ('DINO', 'student', TRAINED),
        ('DINO', 'teacher.backbone.', AVERAGED),
        ('MoCo v3', 'base_encoder', TRAINED),
        ('I-JEPA', 'target_encoder.module', AVERAGED),
        ('I-JEPA', 'encoder', TRAINED),
        ('Lightning', 'student_backbone', TRAINED),
    ],
)
def test_a_prefix_takes_the_vit_whose_names_it_begins_or_is_part_of(
    kind: str, prefix: str, wanted: dict[str, Tensor]
) -> None:
    assert is_of(convert_state_dict(TWO_NETWORKS[kind](), prefix=prefix), wanted)


def test_a_prefix_that_fits_nothing_is_refused_with_the_list() -> None:
    with pytest.raises(CheckpointError, match=r'--prefix tutor: 0 ViTs fit.*student.*teacher'):
        convert_state_dict(TWO_NETWORKS['DINO'](), prefix='tutor')


@pytest.mark.parametrize('wrap', [lambda w: {'model_ema': w}, lambda w: {'ema_state_dict': named(w, 'module.')}])
def test_the_only_vit_is_taken_whatever_it_is_called(wrap: Callable[[dict], dict]) -> None:
    assert is_of(convert_state_dict(wrap(AVERAGED)), AVERAGED)


def test_of_mmengines_checkpoints_state_dict_is_taken_which_holds_the_averaged_weights() -> None:
    checkpoint = {
        'meta': {'mmengine_version': '0.10.7'},
        'state_dict': named(AVERAGED, 'backbone.'),
        'ema_state_dict': named(TRAINED, 'module.backbone.'),
    }
    assert is_of(convert_state_dict(checkpoint), AVERAGED)


def hf_weights(model: Any) -> dict[str, Tensor]:
    """Random weights, none of them at its neutral initial value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().state_dict()


@pytest.mark.parametrize('family', ['ViT', 'Dinov2', 'ViTMAE', 'IJepa'])
def test_transformers_plain_vits_convert_to_what_they_compute(family: str) -> None:
    config = getattr(transformers, f'{family}Config')(**SMALL, intermediate_size=4 * WIDTH)
    if family == 'ViTMAE':
        config.mask_ratio = 0.0
    theirs = getattr(transformers, f'{family}Model')(config)
    weights = hf_weights(theirs)
    has_cls = family != 'IJepa'
    report = convert_state_dict(weights, img_size=None, patch_size=None, keep_cls=has_cls)
    assert report.missing == []
    ours = timm.models.VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=2, num_classes=0, class_token=has_cls,
        global_pool='',
    )  # fmt: skip
    norm = {} if has_cls else {f'norm.{part}': weights[f'layernorm.{part}'] for part in ('weight', 'bias')}
    ours.load_state_dict(report.state_dict | norm)
    images = torch.randn(2, 3, SIDE, SIDE)
    noise = dict(noise=torch.arange(16.0).repeat(2, 1)) if family == 'ViTMAE' else {}
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval().forward_features(images), theirs(images, **noise).last_hidden_state, atol=2e-5, rtol=1e-4
        )


def test_a_classifier_of_transformers_converts_without_its_head() -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, intermediate_size=4 * WIDTH))
    report = convert_state_dict(model.state_dict(), img_size=SIDE, patch_size=8)
    assert report.missing == [] and {'classifier.weight', 'classifier.bias'} <= set(report.dropped)


VISION = dict(SMALL, intermediate_size=4 * WIDTH)
NOT_PLAIN: dict[str, Callable[[], Any]] = {
    'CLIP': lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)),
    'SigLIP': lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION)),
    'DINOv3': lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**VISION)),
    'BEiT': lambda: transformers.BeitModel(
        transformers.BeitConfig(**VISION, use_relative_position_bias=True), add_pooling_layer=False
    ),
    'registers': lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SMALL)),
}


@pytest.mark.parametrize('family', NOT_PLAIN)
def test_transformers_vits_that_the_backbone_does_not_compute_are_refused_with_the_backbone_that_does(
    family: str,
) -> None:
    with pytest.raises(CheckpointError, match='TimmViT'):
        convert_state_dict(NOT_PLAIN[family]().state_dict())


@pytest.mark.parametrize(
    ('model', 'options', 'message'),
    [
        ('swin_tiny_patch4_window7_224', {}, 'no ViT found'),
        ('eva02_tiny_patch14_224', dict(depth=1), 'biases of queries and values.*TimmViT'),
        ('samvit_base_patch16', dict(depth=1), "SAM's encoder.*TimmViT"),
        ('vit_relpos_small_patch16_224', dict(depth=1), 'relative positions.*TimmViT'),
    ],
)
def test_other_networks_of_timm_are_refused_for_what_they_are(model: str, options: dict, message: str) -> None:
    with torch.device('meta'):
        weights = timm.create_model(model, **options).state_dict()
    with pytest.raises(CheckpointError, match=message):
        convert_state_dict(weights)
