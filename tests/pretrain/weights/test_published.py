"""Published checkpoints: every tensor of the key lists loads or is dropped with a reason; others raise by name."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from tiny_addp import tiny_addp

from addp_backbone.checkpoint.convert import CheckpointError, read_checkpoint
from pretrain import ADDP, TokenPredictor, VQGANTokenizer
from pretrain.weights import load_published
from pretrain.weights.published import (
    PUBLISHED_FILES,
    find_published,
    load_published_token_predictor,
    load_published_tokenizer,
)

GOLDEN = Path(__file__).parents[3] / 'tests' / 'golden'
MAGE = {'base': 'mage_vit_base_patch16', 'large': 'mage_vit_large_patch16'}
ADDP_LISTS = {'base': 'addp_vit_base_patch16', 'large': 'addp_vit_large_patch16'}


def tensors_of(key_list, prefix=''):
    """Tensors without storage of every name and shape of a list, so that ViT-L takes no memory."""
    shapes = json.loads((GOLDEN / f'{key_list}.keys.json').read_text())
    dtypes = {'token_emb.position_ids': torch.int64}
    return {prefix + name: torch.empty(shape, device='meta', dtype=dtypes.get(name)) for name, shape in shapes.items()}


def training_checkpoint(arch):
    tokenizer = tensors_of('vqgan_jax_strongaug', 'vqgan.')
    return {
        **tensors_of(ADDP_LISTS[arch]),
        **tokenizer,
        **tensors_of(MAGE[arch], 'token_predictor.'),
        **{f'token_predictor.{name}': value for name, value in tokenizer.items()},
    }


@pytest.fixture(scope='module')
def base():
    with torch.device('meta'):
        return ADDP()


@pytest.fixture(scope='module')
def predictor():
    with torch.device('meta'):
        return TokenPredictor()


@pytest.fixture(scope='module')
def tokenizer():
    with torch.device('meta'):
        return VQGANTokenizer()


@pytest.mark.parametrize('arch', ['base', 'large'])
def test_every_tensor_of_a_training_checkpoint_is_loaded_or_dropped_with_a_reason(arch):
    with torch.device('meta'):
        model = ADDP(arch=arch, token_predictor=dict(arch=arch))
    state_dict = training_checkpoint(arch)
    report = load_published(model, state_dict)
    assert set(report.loaded) | set(report.dropped) == set(state_dict)
    assert not set(report.loaded) & set(report.dropped)
    assert len(report.loaded) == len(list(model.parameters()))
    assert all(report.dropped.values()) and report.absent == []


@pytest.mark.parametrize('arch', ['base', 'large'])
def test_every_tensor_of_a_predictor_file_is_loaded_or_dropped_with_a_reason(arch):
    with torch.device('meta'):
        predictor = TokenPredictor(arch=arch)
    state_dict = tensors_of(MAGE[arch])
    report = load_published_token_predictor(predictor, {'model': state_dict})
    assert set(report.loaded) == {name for name, _ in predictor.named_parameters()}
    assert set(report.loaded) | set(report.dropped) == set(state_dict)


@pytest.mark.parametrize(
    'wrap', [lambda tensors: tensors, lambda tensors: {'state_dict': tensors}], ids=['flat', 'nested']
)
def test_every_tensor_of_the_tokenizer_file_is_loaded(tokenizer, wrap):
    state_dict = tensors_of('vqgan_jax_strongaug')
    report = load_published_tokenizer(tokenizer, wrap(state_dict))
    assert set(report.loaded) == set(state_dict) and not report.dropped


def test_a_file_with_adddps_tensors_alone_loads_and_says_what_it_lacks(base):
    report = load_published(base, {'model': tensors_of(ADDP_LISTS['base'])})
    assert report.absent == ['tokenizer', 'token_predictor']


def test_dropped_tensors_are_exactly_those_the_forward_pass_does_not_use(base):
    report = load_published(base, tensors_of(ADDP_LISTS['base']))
    assert set(report.dropped) == {
        'decoder_pos_embed',
        'decoder_pred.weight',
        'decoder_pred.bias',
        'pos_token_embed',
        'pos_mask_embed',
    }


def test_a_predictor_without_its_integer_buffer_loads(predictor):
    state_dict = tensors_of(MAGE['base'])
    del state_dict['token_emb.position_ids']
    load_published_token_predictor(predictor, state_dict)


NAMES = [
    'blocks.3.attn.qkv.weight',
    'decoder_pred.bias',
    'vqgan.decoder.up.3.block.0.nin_shortcut.weight',
    'token_predictor.token_emb.LayerNorm.weight',
    'token_predictor.patch_embed.proj.weight',
]


@pytest.mark.parametrize('name', NAMES)
def test_a_missing_tensor_raises_with_its_name(base, name):
    state_dict = {
        key: value for key, value in training_checkpoint('base').items() if 'token_predictor.vqgan' not in key
    }
    del state_dict[name]
    with pytest.raises(CheckpointError, match=f'{name} is missing'):
        load_published(base, state_dict)


@pytest.mark.parametrize('name', NAMES)
def test_a_tensor_of_another_shape_raises_with_its_name_and_both_shapes(base, name):
    state_dict = training_checkpoint('base')
    wanted = tuple(state_dict[name].shape)
    state_dict[name] = torch.empty(5, 7, device='meta')
    with pytest.raises(CheckpointError) as error:
        load_published(base, state_dict)
    assert f'{name} has shape (5, 7), wanted {wanted}' in str(error.value)


@pytest.mark.parametrize('name', ['blocks.12.attn.qkv.weight', 'vqgan.loss.weight', 'token_predictor.extra', 'foo'])
def test_an_extra_tensor_raises_with_its_name(base, name):
    state_dict = training_checkpoint('base') | {name: torch.empty(1, device='meta')}
    with pytest.raises(CheckpointError, match=f'{name} is not known'):
        load_published(base, state_dict)


@pytest.mark.parametrize(
    ('value', 'message'), [(3, 'is a int, wanted a tensor'), (torch.ones(768, dtype=torch.int64), 'int64')]
)
def test_an_entry_that_is_no_floating_point_tensor_raises_with_its_name(base, value, message):
    with pytest.raises(CheckpointError, match=f'norm.weight .*{message}'):
        load_published(base, tensors_of(ADDP_LISTS['base']) | {'norm.weight': value})


def test_a_large_checkpoint_does_not_load_into_a_base_model(base):
    with pytest.raises(CheckpointError, match=r'wanted \(1, 1, 768\)'):
        load_published(base, tensors_of(ADDP_LISTS['large']))


@pytest.mark.parametrize('load', [load_published_tokenizer, load_published_token_predictor])
def test_a_file_of_another_network_is_refused(load, tokenizer, predictor):
    network, wrong = (
        (tokenizer, MAGE['base']) if load is load_published_tokenizer else (predictor, 'vqgan_jax_strongaug')
    )
    with pytest.raises(CheckpointError, match='is missing'):
        load(network, tensors_of(wrong))


def published_state(model):
    """The published state dict that holds a tiny model's weights."""
    width, length = model.pos_embed.shape[-1], model.pos_embed.shape[1]
    positions = torch.zeros(1, length, width)
    pixels = {
        'decoder_pos_embed': positions,
        'decoder_pred.weight': torch.zeros(192, width),
        'decoder_pred.bias': torch.zeros(192),
    }
    mage = {
        'cls_token': torch.zeros(1, 1, width),
        'mask_token': torch.zeros(1, 1, width),
        'pos_embed': positions,
        'patch_embed.proj.weight': torch.zeros(width, 3, 8, 8),
        'patch_embed.proj.bias': torch.zeros(width),
        **pixels,
    }
    tokenizer = {f'vqgan.{name}': value for name, value in model.tokenizer.state_dict().items()}
    predictor = {**model.token_predictor.state_dict(), **mage, **tokenizer}
    return {
        **model.state_dict(),
        **pixels,
        'pos_token_embed': positions,
        'pos_mask_embed': positions,
        **tokenizer,
        **{f'token_predictor.{name}': value for name, value in predictor.items()},
    }


def moved_model():
    model = tiny_addp()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    return model


def test_all_three_networks_get_the_files_values():
    source, target = moved_model(), tiny_addp()
    load_published(target, published_state(source))
    loaded = dict(target.named_parameters())
    assert all(torch.equal(value, loaded[name]) for name, value in source.named_parameters())


def test_the_tokenizer_is_found_under_its_second_name():
    source, target = moved_model(), tiny_addp()
    state_dict = {name: value for name, value in published_state(source).items() if not name.startswith('vqgan.')}
    assert load_published(target, state_dict).absent == []
    assert torch.equal(target.tokenizer.codebook, source.tokenizer.codebook)


def test_two_names_of_the_tokenizer_with_different_values_are_refused():
    model = tiny_addp()
    state_dict = published_state(model)
    name = 'token_predictor.vqgan.encoder.conv_out.bias'
    state_dict[name] = state_dict[name] + 1
    with pytest.raises(CheckpointError, match=f'{name} differs'):
        load_published(model, state_dict)


def test_after_an_error_nothing_has_been_loaded():
    source, target = moved_model(), tiny_addp()
    before = target.pos_embed.clone()
    state_dict = published_state(source)
    del state_dict['vqgan.quantize.embedding.weight'], state_dict['token_predictor.vqgan.quantize.embedding.weight']
    with pytest.raises(CheckpointError, match=r'vqgan\.quantize\.embedding\.weight'):
        load_published(target, state_dict)
    assert torch.equal(target.pos_embed, before)


def test_a_training_checkpoint_with_its_arguments_is_read_from_disk_and_loaded(tmp_path):
    source, target = moved_model(), tiny_addp()
    path = tmp_path / 'mine.pth'
    torch.save(
        dict(model=published_state(source), optimizer={}, epoch=3, scaler={}, args=argparse.Namespace(lr=1e-4)), path
    )
    report = load_published(target, read_checkpoint(path))
    assert {'args', 'optimizer', 'epoch', 'scaler'} <= set(report.dropped)
    assert torch.equal(target.pos_embed, source.pos_embed)


def test_weights_load_into_networks_of_another_precision():
    source, target = moved_model(), tiny_addp(frozen_dtype='bfloat16')
    load_published(target, published_state(source))
    assert target.token_predictor.norm.weight.dtype == torch.bfloat16
    torch.testing.assert_close(
        target.token_predictor.norm.weight.float(), source.token_predictor.norm.weight, rtol=0.01, atol=0
    )


@pytest.mark.parametrize('name', sorted(PUBLISHED_FILES))
def test_a_missing_file_is_named_with_its_source_and_the_option_that_points_elsewhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        find_published(name, option='model.tokenizer_checkpoint')
    published = PUBLISHED_FILES[name]
    for part in (str(published.path), published.source, 'model.tokenizer_checkpoint'):
        assert part in str(error.value)


def test_a_file_is_found_where_the_published_readme_places_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path('exp/pretrained_model/mage-vitb-1600.pth')
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_published('mage-vitb-1600') == path


def test_an_option_wins_over_the_usual_place(tmp_path):
    path = tmp_path / 'elsewhere.ckpt'
    path.touch()
    assert find_published('vqgan_jax_strongaug', path) == path


def test_an_unknown_published_name_is_refused():
    with pytest.raises(ValueError, match='mage-vitb-1600'):
        find_published('mage')
