"""Conversion: every tensor mapped or dropped for a reason, and nothing read that would execute."""

import argparse
import collections
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.logging import HistoryBuffer
from running import run_main
from safetensors.torch import load_file, save_file

from addp_backbone import ADDPViT
from addp_backbone.checkpoint.convert import CheckpointError, convert_state_dict, read_checkpoint, write_atomically

ROOT = Path(__file__).resolve().parents[3]
WIDTH, DEPTH = 32, 2


def tiny_vit_weights(prefix=''):
    torch.manual_seed(0)
    vit = timm.create_model(
        'vit_base_patch16_224', img_size=256, embed_dim=WIDTH, depth=DEPTH, num_heads=2, num_classes=0
    )
    return {prefix + name: torch.randn_like(tensor) for name, tensor in vit.state_dict().items()}


def tiny_addp():
    """Every kind of tensor that a published training checkpoint holds, at tiny size."""
    weights = tiny_vit_weights()
    weights |= {f'tokenizer_norm.{kind}': torch.randn(WIDTH) for kind in ('weight', 'bias')}
    weights |= {f'decoder_blocks.0.norm1.{kind}': torch.randn(WIDTH) for kind in ('weight', 'bias')}
    for name in (
        'mask_token',
        'decoder_pos_embed',
        'decoder_pos_embed_learned',
        'pos_token_embed',
        'pos_mask_embed',
        'decoder_pos_token_embed',
        'decoder_pos_mask_embed',
        'mlm_layer.bias',
        'decoder_pred.weight',
        'decoder_embed.bias',
        'token_emb.weight',
        'vqgan.quantize.embedding.weight',
        'token_predictor.cls_token',
        'token_predictor.blocks.0.attn.qkv.weight',
        'token_predictor.vqgan.quantize.embedding.weight',
    ):
        weights[name] = torch.randn(3)
    return weights


def tiny_mage():
    weights = {
        name: tensor
        for name, tensor in tiny_addp().items()
        if not name.startswith(('tokenizer_norm', 'token_emb', 'pos_token', 'pos_mask', 'vqgan', 'token_predictor'))
    }
    return weights | {
        'token_emb.position_ids': torch.arange(257)[None],
        'token_emb.word_embeddings.weight': torch.randn(2025, WIDTH),
        'token_emb.position_embeddings.weight': torch.randn(257, WIDTH),
        'token_emb.LayerNorm.weight': torch.randn(WIDTH),
        'token_emb.LayerNorm.bias': torch.randn(WIDTH),
    }


def backbone(**options):
    return ADDPViT(dict(width=WIDTH, depth=DEPTH, num_heads=2), rel_pos=False, **options)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: w,
        lambda w: {'model': w, 'args': argparse.Namespace(lr=1.0), 'epoch': 3},
        lambda w: {'state_dict': {'module.' + k: v for k, v in w.items()}},
    ],
)
def test_an_addp_checkpoint_converts_with_every_tensor_accounted_for(wrap):
    source = tiny_addp()
    report = convert_state_dict(wrap(source))
    assert report.format == 'addp' and report.missing == []
    assert len(report.state_dict) + len(report.dropped) == len(source)
    assert all(reason for reason in report.dropped.values())
    torch.testing.assert_close(report.state_dict['pos_embed'], source['pos_embed'][:, 1:])
    torch.testing.assert_close(report.state_dict['blocks.1.mlp.fc2.weight'], source['blocks.1.mlp.fc2.weight'])
    backbone(tokenizer_norm=True).load_state_dict(report.state_dict)
    backbone().load_state_dict(report.state_dict)


@pytest.mark.parametrize('size', ['base', 'large'])
@pytest.mark.parametrize('kind', ['addp', 'mage'])
def test_every_name_and_shape_of_the_published_files_converts(kind, size):
    keys = json.loads((ROOT / f'tests/golden/{kind}_vit_{size}_patch16.keys.json').read_text())
    with torch.device('meta'):
        report = convert_state_dict({name: torch.empty(shape) for name, shape in keys.items()})
        vit = ADDPViT(size, tokenizer_norm=True, rel_pos=False)
        vit.load_state_dict(report.state_dict, assign=True)
    assert report.format == kind and report.missing == []
    assert len(report.state_dict) + len(report.dropped) == len(keys)


def test_a_mae_checkpoint_converts_and_its_positions_are_resized():
    weights = tiny_vit_weights() | {
        'mask_token': torch.randn(1, 1, 16),
        'decoder_pos_embed': torch.randn(1, 197, 16),
        'decoder_blocks.0.norm1.weight': torch.randn(16),
        'decoder_pred.bias': torch.randn(3),
    }
    weights['pos_embed'] = torch.randn(1, 197, WIDTH)
    report = convert_state_dict(weights)
    assert report.format == 'mae' and report.missing == []
    assert report.state_dict['pos_embed'].shape == (1, 256, WIDTH)
    assert any('resized (bicubic) from 14 x 14 to 16 x 16' in note for note in report.notes)
    kept = convert_state_dict(weights, img_size=None)
    torch.testing.assert_close(kept.state_dict['pos_embed'], weights['pos_embed'][:, 1:])


def test_mages_encoder_brings_the_positions_and_the_norm_that_its_blocks_saw():
    weights = tiny_mage()
    report = convert_state_dict(weights)
    assert report.format == 'mage' and report.missing == []
    torch.testing.assert_close(report.state_dict['pos_embed'][0], weights['token_emb.position_embeddings.weight'][1:])
    torch.testing.assert_close(report.state_dict['tokenizer_norm.bias'], weights['token_emb.LayerNorm.bias'])
    assert 'pos_embed' in report.dropped and any('never trains it' in note for note in report.notes)


def test_a_timm_vit_of_another_patch_size_is_resampled():
    source = timm.create_model(
        'vit_tiny_patch16_224', patch_size=32, img_size=256, embed_dim=WIDTH, depth=DEPTH, num_heads=2
    )
    report = convert_state_dict(source.state_dict())
    assert report.format == 'timm' and report.missing == []
    assert report.state_dict['patch_embed.proj.weight'].shape[-1] == 16
    assert any('resampled from 32 to 16' in note for note in report.notes)
    assert any('no tensor tells the activation, rotary positions' in note for note in report.notes)
    backbone().load_state_dict(report.state_dict)


@pytest.mark.parametrize(
    'options, reason',
    [
        (dict(qk_norm=True), 'query and key norm'),
        (dict(pre_norm=True), 'in front of the blocks'),
        (dict(reg_tokens=2), 'register tokens'),
        (dict(class_token=False, global_pool='map'), "SigLIP's attention pooling"),
    ],
)
def test_a_part_that_the_backbone_has_no_place_for_is_refused_with_the_reason(options, reason):
    source = timm.create_model(
        'vit_tiny_patch16_224', img_size=64, embed_dim=WIDTH, depth=DEPTH, num_heads=2, **options
    )
    with pytest.raises(CheckpointError, match=rf'{reason}.*Use it with the backbone TimmViT.*timm_maskrcnn.py'):
        convert_state_dict(source.state_dict())


@pytest.mark.parametrize('spelling', ['ls1.gamma', 'gamma_1'])
def test_layer_scale_is_folded_into_the_layers_it_scales_and_computes_the_same(spelling):
    source = timm.create_model(
        'vit_tiny_patch16_224',
        img_size=64,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=2,
        init_values=0.5,
        class_token=False,
        global_pool='avg',
        fc_norm=False,
    ).eval()
    for name, param in source.named_parameters():
        torch.nn.init.normal_(param, mean=1.0 if param.ndim == 1 and 'bias' not in name else 0.0, std=0.3)
    state = {
        name.replace('ls1.gamma', spelling).replace('ls2.gamma', spelling.replace('1', '2')): value
        for name, value in source.state_dict().items()
    }
    report = convert_state_dict(state, img_size=64)
    assert report.dropped[f'blocks.0.{spelling}'].startswith('LayerScale, folded into blocks.0.attn.proj')
    assert any(f'{2 * DEPTH} LayerScale vectors folded' in note for note in report.notes)
    vit = ADDPViT(
        dict(width=WIDTH, depth=DEPTH, num_heads=2), img_size=64, pretrain_img_size=64, window_size=0, rel_pos=False
    ).eval()
    vit.load_state_dict(report.state_dict)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = source.forward_intermediates(images, indices=[DEPTH - 1], intermediates_only=True)[0]
        assert (vit(images)[0] - wanted).abs().max() < 3e-6 * wanted.abs().max()


def test_a_tensor_that_nobody_can_explain_is_an_error_with_its_name():
    with pytest.raises(CheckpointError, match=r'blocks\.0\.attn\.surprise'):
        convert_state_dict(tiny_addp() | {'blocks.0.attn.surprise': torch.zeros(1)})


def test_a_wrong_shape_is_an_error_with_both_shapes():
    with pytest.raises(CheckpointError, match=r'blocks.1.mlp.fc1.bias: got \(5,\), wanted \(128,\)'):
        convert_state_dict(tiny_addp() | {'blocks.1.mlp.fc1.bias': torch.zeros(5)})


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (torch.full((128,), float('nan')), 'holds values that are not finite'),
        (torch.zeros(128, dtype=torch.complex64), 'holds torch.complex64, wanted floating point'),
        (torch.zeros(128, dtype=torch.int32), 'holds torch.int32, wanted floating point'),
    ],
)
def test_weights_that_cannot_be_used_are_refused_and_not_called_mapped(value, message):
    with pytest.raises(CheckpointError, match=rf'blocks\.1\.mlp\.fc1\.bias {message}'):
        convert_state_dict(tiny_addp() | {'blocks.1.mlp.fc1.bias': value})
    with pytest.raises(CheckpointError, match='pos_embed holds values'):
        convert_state_dict(tiny_addp() | {'pos_embed': torch.full_like(tiny_addp()['pos_embed'], float('inf'))})


def test_the_missing_tensors_are_listed():
    weights = tiny_addp()
    del weights['blocks.0.norm2.bias'], weights['pos_embed'], weights['tokenizer_norm.weight']
    assert convert_state_dict(weights).missing == ['tokenizer_norm.weight', 'blocks.0.norm2.bias', 'pos_embed']


def test_something_without_a_vit_is_refused():
    with pytest.raises(CheckpointError, match='no ViT found'):
        convert_state_dict({'conv1.weight': torch.zeros(1)})
    with pytest.raises(CheckpointError, match='no tensors found'):
        convert_state_dict({'epoch': 3})


def test_a_detectron2_pickle_converts_backbone_and_pyramid(tmp_path):
    weights = load_file(ROOT / 'tests/golden/vitdet_tiny.weights.safetensors')
    model = {f'backbone.{name}': tensor.numpy() for name, tensor in weights.items()}
    model['roi_heads.mask_head.predictor.bias'] = np.zeros(3, dtype=np.float32)
    (tmp_path / 'model.pkl').write_bytes(pickle.dumps({'model': model, '__author__': 'somebody'}))
    result = run_main('convert_checkpoint', tmp_path / 'model.pkl', tmp_path / 'vit.pth')
    assert result.returncode == 0, result.stderr
    wanted = convert_state_dict(weights)
    for got, want in (
        (torch.load(tmp_path / 'vit.pth'), wanted.state_dict),
        (torch.load(tmp_path / 'vit.neck.pth'), wanted.neck_state_dict),
    ):
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_the_tool_writes_weights_that_the_backbone_takes(tmp_path, ending):
    torch.save({'model': tiny_addp(), 'args': argparse.Namespace(batch_size=4096)}, tmp_path / 'src.pth')
    result = run_main('convert_checkpoint', tmp_path / 'src.pth', tmp_path / f'dst{ending}')
    assert result.returncode == 0, result.stderr
    assert 'format    addp' in result.stdout and 'dropped' in result.stdout
    vit = backbone(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / f'dst{ending}')))
    vit.init_weights()
    torch.testing.assert_close(vit.pos_embed.data, tiny_addp()['pos_embed'][:, 1:])


class Malicious:
    def __reduce__(self):
        return exec, ("open('executed', 'w').close()",)


def broken_files(folder):
    good = tiny_addp()
    without_one = {name: tensor for name, tensor in good.items() if name != 'blocks.1.attn.proj.bias'}
    torch.save({'model': without_one}, folder / 'missing.pth')
    torch.save({'model': good | {'blocks.0.norm1.weight': torch.zeros(7)}}, folder / 'shape.pth')
    torch.save({'model': good}, folder / 'whole.pth')
    (folder / 'truncated.pth').write_bytes((folder / 'whole.pth').read_bytes()[:-2000])
    torch.save({'model': good, 'args': Malicious()}, folder / 'malicious.pth')
    (folder / 'malicious.pkl').write_bytes(pickle.dumps({'model': Malicious()}))
    save_file(good, folder / 'whole.safetensors')
    (folder / 'truncated.safetensors').write_bytes((folder / 'whole.safetensors').read_bytes()[:-50])
    (folder / 'empty.pth').touch()


@pytest.mark.parametrize(
    'name, message',
    [
        ('missing.pth', '1 tensors of the trunk are missing'),
        ('shape.pth', 'got (7,), wanted (32,)'),
        ('truncated.pth', 'truncated or no checkpoint'),
        ('malicious.pth', 'is refused: reading it would execute code'),
        ('malicious.pkl', 'is refused: reading it would execute code'),
        ('truncated.safetensors', 'truncated or no checkpoint'),
        ('empty.pth', 'truncated or no checkpoint'),
        ('absent.pth', 'does not exist'),
    ],
)
def test_a_bad_file_is_refused_and_nothing_is_written(tmp_path, monkeypatch, name, message):
    broken_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    result = run_main('convert_checkpoint', tmp_path / name, tmp_path / 'dst.pth')
    assert result.returncode == 1
    assert message in result.stderr and 'Traceback' not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_mmengines_own_checkpoints_are_read_but_their_getattr_is_not_a_loophole(tmp_path):
    buffers = {'train/loss': HistoryBuffer([1.0, 2.0], [1, 1])}
    torch.save(
        {'state_dict': {'w': torch.ones(1)}, 'message_hub': {'log_scalars': buffers}, 'x': np.float64(3)},
        tmp_path / 'mm.pth',
    )
    assert read_checkpoint(tmp_path / 'mm.pth')['message_hub']['log_scalars']['train/loss'].mean() == 1.5

    class Loophole:
        def __reduce__(self):
            return getattr, (collections.OrderedDict, 'fromkeys')

    torch.save({'x': Loophole()}, tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match='refused'):
        read_checkpoint(tmp_path / 'bad.pth')


def test_a_failing_write_leaves_the_old_file_and_no_rest(tmp_path):
    write_atomically({'w': torch.ones(2)}, tmp_path / 'w.safetensors')
    with pytest.raises(RuntimeError):
        write_atomically({'w': torch.ones(2, device='meta')}, tmp_path / 'w.safetensors')
    assert [path.name for path in tmp_path.iterdir()] == ['w.safetensors']
    assert load_file(tmp_path / 'w.safetensors')['w'].tolist() == [1, 1]


def test_the_tool_writes_no_tensor_without_values(tmp_path):
    weights = tiny_addp()
    torch.save({**weights, 'pos_embed': weights['pos_embed'].to('meta')}, tmp_path / 'src.pth')
    result = run_main('convert_checkpoint', tmp_path / 'src.pth', tmp_path / 'dst.pth')
    assert result.returncode == 1 and 'pos_embed has a shape but no values' in result.stderr
    assert not (tmp_path / 'dst.pth').exists()


def test_the_tool_refuses_an_unknown_ending_and_overwriting_its_source(tmp_path):
    torch.save(tiny_addp(), tmp_path / 'src.pth')
    for target, message in ((tmp_path / 'dst.npz', 'DST must end in'), (tmp_path / 'src.pth', 'the same file')):
        result = run_main('convert_checkpoint', tmp_path / 'src.pth', target)
        assert result.returncode == 1 and message in result.stderr
