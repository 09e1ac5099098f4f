"""The backbone and the pyramid against detectron2's golden values, HF transformers' VitDet and timm's ViT."""

import json
from pathlib import Path

import pytest
import timm
import torch
from mmengine.registry import MODELS
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from addp_backbone import ADDPViT, SimpleFeaturePyramid
from addp_backbone.checkpoint.convert import CheckpointError, convert_state_dict, write_atomically
from addp_backbone.layers.attention import Kernel
from addp_backbone.layers.block import Attention
from addp_backbone.layers.grid import relative_positions
from addp_backbone.networks.arch import get_arch

GOLDEN = Path(__file__).parents[3] / 'tests' / 'golden'
SIZES = ['160x160', '128x192', '176x96']
SMALL = dict(width=32, depth=4, num_heads=2)
TOLERANCE = 1e-4


def relative_error(got, wanted):
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def small_vit(**options):
    torch.manual_seed(0)
    vit = ADDPViT(**{'arch': SMALL, 'img_size': 64, 'pretrain_img_size': 64, 'window_size': 3, **options})
    for parameter in vit.parameters():  # zero-initialised tables and biases would hide errors
        torch.nn.init.normal_(parameter, std=0.1)
    return vit


@pytest.fixture(scope='module')
def golden_report():
    return convert_state_dict(load_file(GOLDEN / 'vitdet_tiny.weights.safetensors'), 'detectron2')


@pytest.fixture(scope='module')
def golden_outputs():
    return load_file(GOLDEN / 'vitdet_tiny.outputs.safetensors')


@pytest.fixture(scope='module', params=SIZES)
def golden_run(request, golden_report, golden_outputs):
    config = json.loads((GOLDEN / 'vitdet_tiny.json').read_text())
    arch = dict(width=config['embed_dim'], depth=config['depth'], num_heads=config['num_heads'])
    vit = ADDPViT(arch, img_size=config['img_size'], window_size=config['window_size'])
    neck = SimpleFeaturePyramid(config['embed_dim'], config['out_channels'])
    vit.load_state_dict(golden_report.state_dict)
    neck.load_state_dict(golden_report.neck_state_dict)
    outputs = {
        name.removeprefix(request.param + '.'): value
        for name, value in golden_outputs.items()
        if name.startswith(request.param)
    }
    (feat,) = vit(outputs['image'])
    pyramid = neck((feat,))
    loss = sum(level.square().mean() for level in pyramid)
    loss.backward()
    return dict(feat=feat, pyramid=pyramid, loss=loss, vit=vit, wanted=outputs)


def test_the_last_map_equals_detectron2(golden_run):
    assert relative_error(golden_run['feat'], golden_run['wanted']['last_feat']) < TOLERANCE


@pytest.mark.parametrize('level', range(5))
def test_each_pyramid_level_equals_detectron2(golden_run, level):
    assert relative_error(golden_run['pyramid'][level], golden_run['wanted'][f'p{level + 2}']) < TOLERANCE


def test_the_loss_equals_detectron2(golden_run):
    torch.testing.assert_close(golden_run['loss'], golden_run['wanted']['loss'][0], rtol=TOLERANCE, atol=0)


def test_every_gradient_equals_detectron2(golden_run):
    grads = {
        name.removeprefix('grad.net.'): grad for name, grad in golden_run['wanted'].items() if name.startswith('grad.')
    }
    assert len(grads) == 5
    for name, wanted in grads.items():
        wanted = wanted[:, 1:] if name == 'pos_embed' else wanted  # detectron2 keeps the entry of cls
        assert relative_error(golden_run['vit'].get_parameter(name).grad, wanted) < TOLERANCE, name


def test_the_backbone_equals_hf_vitdet():
    from transformers import VitDetBackbone, VitDetConfig

    config = VitDetConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=64,
        pretrain_image_size=64,
        patch_size=16,
        window_size=3,
        window_block_indices=[0, 2],
        residual_block_indices=[],
        use_relative_position_embeddings=True,
        use_absolute_position_embeddings=True,
        drop_path_rate=0.0,
    )
    theirs = VitDetBackbone(config).eval()
    ours = small_vit()
    assert ours.global_attn_indices == (1, 3)
    renamed = {}
    for name, tensor in ours.state_dict().items():
        name = name.replace('blocks.', 'encoder.layer.').replace('.attn.', '.attention.')
        name = name.replace('patch_embed.proj', 'embeddings.projection').replace(
            'pos_embed', 'embeddings.position_embeddings'
        )
        if name == 'embeddings.position_embeddings':
            tensor = torch.cat((torch.zeros(1, 1, 32), tensor), dim=1)
        renamed[name] = tensor
    missing, unexpected = theirs.load_state_dict(renamed, strict=False)
    assert not unexpected and all('layernorm' in name or 'hidden_states_norms' in name for name in missing)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(ours(images)[0], theirs(images).feature_maps[-1]) < 1e-5


def test_without_windows_and_relative_positions_it_equals_a_timm_vit():
    theirs = timm.create_model(
        'vit_base_patch16_224',
        img_size=64,
        embed_dim=32,
        depth=4,
        num_heads=2,
        class_token=False,
        global_pool='avg',
        pos_embed='learn',
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ours = small_vit(window_size=0, rel_pos=False, out_indices=(1, 3))
    report = convert_state_dict(theirs.state_dict(), 'timm', img_size=64)
    assert report.missing == []
    ours.load_state_dict(report.state_dict)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs.forward_intermediates(images, indices=[1, 3], intermediates_only=True, norm=False)
        for got, want in zip(ours(images), wanted, strict=True):
            assert relative_error(got, want) < 1e-5


def test_attention_equals_a_loop_over_pairs_of_tokens():
    attention = small_vit(window_size=0).blocks[0].attn.double()
    grid, num_tokens = (2, 3), 6
    x = torch.randn(1, num_tokens, 32, dtype=torch.double)
    q, k, v = attention.qkv(x).reshape(num_tokens, 3, 2, 16).unbind(1)
    table_h, table_w = (
        relative_positions(table, size)
        for table, size in zip((attention.rel_pos_h, attention.rel_pos_w), grid, strict=True)
    )
    out = torch.zeros(num_tokens, 2, 16, dtype=torch.double)
    for head in range(2):
        for i in range(num_tokens):
            logits = torch.stack(
                [
                    q[i, head] @ k[j, head] / 4
                    + q[i, head] @ table_h[i // 3, j // 3]
                    + q[i, head] @ table_w[i % 3, j % 3]
                    for j in range(num_tokens)
                ]
            )
            out[i, head] = logits.softmax(0) @ v[:, head]
    wanted = attention.proj(out.reshape(1, num_tokens, 32))
    torch.testing.assert_close(attention(x, grid), wanted)


@pytest.mark.parametrize('window_size, grid', [(0, (5, 7)), (4, (10, 7)), (4, (3, 8)), (8, (5, 5))])
def test_attention_in_blocks_equals_fused_attention_in_values_and_gradients(window_size, grid, monkeypatch):
    monkeypatch.setattr('addp_backbone.layers.cpu_attention._FORWARD_BLOCK', 2000)  # several blocks in each pass
    monkeypatch.setattr('addp_backbone.layers.cpu_attention._BACKWARD_BLOCK', {8: 2000})
    torch.manual_seed(0)
    attention = Attention(48, 3, window_size=window_size, rel_pos_size=window_size or 6).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def fused(x, grid):
        with monkeypatch.context() as patch:
            patch.setattr('addp_backbone.layers.attention.choose_kernel', lambda *_: Kernel.FUSED)
            return attention(x, grid)

    x = torch.randn(2, grid[0] * grid[1], 48, dtype=torch.double, requires_grad=True)
    weight = torch.randn(x.shape, dtype=torch.double)
    results = []
    for attend in (attention, fused):
        out = attend(x, grid)
        results.append([out, *torch.autograd.grad((out * weight).sum(), [x, *attention.parameters()])])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


def test_no_tensor_of_pairs_of_tokens_is_made_at_1024_px():
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(
                [largest, *(tensor.numel() for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor))]
            )
            return out

    vit = small_vit(arch=dict(width=8, depth=1, num_heads=1), window_size=0)
    with Watch():
        vit(torch.randn(1, 3, 1024, 1024))[0].square().mean().backward()
    assert 64**2 * 64 <= largest < 64**4 / 2


def test_relative_positions_look_up_offsets_and_interpolate_other_sizes():
    table = torch.arange(5.0)[:, None]  # offsets -2 .. 2
    assert relative_positions(table, 3)[..., 0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    wanted = F.interpolate(table.t()[None], size=7, mode='linear')[0, 0]
    torch.testing.assert_close(relative_positions(table, 4)[:, 0, 0], wanted[3:])


@pytest.mark.parametrize('arch, blocks', [('base', (2, 5, 8, 11)), ('large', (5, 11, 17, 23))])
def test_global_blocks_are_vitdets(arch, blocks):
    assert get_arch(arch).global_attn_indices == blocks


@pytest.mark.parametrize('arch, blocks', [('base', (3, 5, 7, 11)), ('large', (7, 11, 15, 23)), ('tiny', (0, 1, 2, 3))])
def test_upernet_taps_are_mae_and_beits(arch, blocks):
    assert get_arch(arch).upernet_indices == blocks


def test_a_map_is_returned_for_every_out_index_and_every_image_shape():
    vit = small_vit(out_indices=(0, 2, -1))
    maps = vit(torch.randn(2, 3, 48, 80))
    assert [tuple(m.shape) for m in maps] == [(2, 32, 3, 5)] * 3
    assert vit.out_channels == (32, 32, 32)


def test_a_size_that_is_no_multiple_of_the_patch_names_the_option_that_mends_it():
    with pytest.raises(ValueError, match=r'multiples of the patch size 16, got 48 x 50.*pad_size_divisor'):
        small_vit()(torch.randn(1, 3, 48, 50))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(out_indices=(4,)), 'out_indices must be ascending block indices in'),
        (dict(global_attn_indices='all'), "global_attn_indices must be 'auto'"),
        (dict(arch='enormous'), "unknown arch 'enormous'"),
        (dict(arch=dict(width=30, depth=1, num_heads=4)), 'multiple of num_heads'),
        (dict(arch=dict(width=32, depth=1)), 'exactly the keys width, depth and num_heads'),
        (dict(img_size=100), 'multiples of patch_size=16'),
        (dict(with_cp='cpu'), "with_cp must be False, True or 'offload', got 'cpu'"),
    ],
)
def test_a_wrong_option_is_refused_with_a_message(options, message):
    with pytest.raises(ValueError, match=message):
        small_vit(**options)


def loss_and_gradients(dtype=None, dropout=0.0, **options):
    vit = small_vit(**options).train()
    for block in vit.blocks:
        block.attn.dropout = block.attn.proj_drop.p = block.mlp.drop1.p = block.mlp.drop2.p = dropout
    images = torch.randn(2, 3, 64, 96)
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        loss = vit(images)[0].square().mean()
    loss.backward()
    return [loss, *(parameter.grad for parameter in vit.parameters())]


@pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('options', [dict(), dict(drop_path_rate=0.5), dict(dropout=0.2), dict(rel_pos=False)])
def test_checkpointing_keeps_loss_and_gradients_to_the_bit(dtype, options):
    plain, checkpointed = (loss_and_gradients(dtype, with_cp=with_cp, **options) for with_cp in (False, True))
    for wanted, got in zip(plain, checkpointed, strict=True):
        assert torch.equal(wanted, got)


def test_offloading_keeps_loss_and_gradients_in_float32():
    plain, offloaded = (loss_and_gradients(drop_path_rate=0.5, with_cp=with_cp) for with_cp in (False, 'offload'))
    for wanted, got in zip(plain, offloaded, strict=True):
        assert torch.equal(wanted, got)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_offloading_refuses_a_precision_that_fairscale_does_not_compute_again(dtype):
    with pytest.raises(ValueError, match=r"with_cp='offload' cannot .* in b?float16 on cpu.*: use with_cp=True"):
        loss_and_gradients(dtype, with_cp='offload')


def test_fairscale_itself_computes_bfloat16_blocks_again_in_float32(monkeypatch):
    monkeypatch.setattr('addp_backbone.networks.vit._check_offload_precision', lambda device_type: None)
    plain, offloaded = (loss_and_gradients(torch.bfloat16, with_cp=with_cp) for with_cp in (False, 'offload'))
    assert torch.equal(plain[0], offloaded[0])
    assert any(relative_error(got, wanted) > 1e-3 for got, wanted in zip(offloaded, plain, strict=True))


@pytest.mark.parametrize('with_cp', [False, True])
def test_a_block_is_one_graph(with_cp, monkeypatch):
    monkeypatch.setattr('addp_backbone.layers.attention.choose_kernel', lambda *_: Kernel.FUSED)  # as on a GPU
    vit = small_vit(with_cp=with_cp)
    run = torch.compile(vit.run_block, backend='aot_eager', fullgraph=True)
    x = torch.randn(1, 12, 32, requires_grad=True)
    for block in vit.blocks[:2]:  # windows, the whole map
        got, wanted = run(block, x, (3, 4)), vit.run_block(block, x, (3, 4))
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (got, wanted)))


@pytest.mark.parametrize('with_cp', [False, True, 'offload'])
def test_no_tensor_of_pairs_is_kept_for_the_backward_pass(with_cp):
    vit = small_vit(img_size=256, window_size=8, with_cp=with_cp)  # 256 tokens, windows of 64
    kept = []

    def keep(tensor):
        kept.append(tuple(tensor.shape[-2:]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vit(torch.randn(1, 3, 128, 512))[0].sum().backward()
    assert kept and not {(256, 256), (64, 64)} & set(kept)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_stays_close_to_float32(dtype):
    vit = small_vit(window_size=2)
    images = torch.randn(1, 3, 64, 64)
    wanted = vit(images)[0]
    with torch.autocast('cpu', dtype=dtype):
        got = vit(images)[0]
    got.float().square().mean().backward()
    assert relative_error(got.float(), wanted) < 0.05
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vit.parameters())


def test_stochastic_depth_grows_linearly_and_is_off_in_eval_mode():
    vit = small_vit(drop_path_rate=0.3)
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in vit.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    vit.eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(vit(images)[0], small_vit()(images)[0])


def test_tokenizer_norm_acts_only_where_asked_for():
    images = torch.randn(1, 3, 64, 64)
    with_norm, without = small_vit(tokenizer_norm=True), small_vit()
    without.load_state_dict(with_norm.state_dict())  # says that it leaves the norm out
    changed = relative_error(without(images)[0], with_norm(images)[0])
    with_norm.tokenizer_norm = None
    assert changed > 1e-2
    torch.testing.assert_close(without(images)[0], with_norm(images)[0])


def test_layer_depth_follows_the_published_rule():
    vit = small_vit()
    depth = {name: vit.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in vit.named_parameters()}
    assert depth['pos_embed'] == depth['patch_embed.proj.weight'] == (0, 6)
    assert depth['blocks.0.attn.rel_pos_h'] == (1, 6) and depth['blocks.3.mlp.fc2.bias'] == (4, 6)
    assert vit.get_layer_depth('neck.levels.0.0.weight', 'backbone.') == (5, 6)


def test_both_modules_are_registered_at_the_root():
    assert MODELS.get('ADDPViT') is ADDPViT and MODELS.get('SimpleFeaturePyramid') is SimpleFeaturePyramid
    from mmdet.registry import MODELS as MMDET_MODELS
    from mmseg.registry import MODELS as MMSEG_MODELS

    assert MMDET_MODELS.get('ADDPViT') is ADDPViT and MMSEG_MODELS.get('ADDPViT') is ADDPViT


def test_pretrained_weights_come_from_the_file_and_relative_positions_may_be_new(tmp_path):
    source = small_vit(rel_pos=False)
    write_atomically(source.state_dict(), tmp_path / 'vit.safetensors')
    vit = small_vit(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'vit.safetensors')))
    vit.init_weights()
    torch.testing.assert_close(vit.blocks[2].attn.qkv.weight, source.blocks[2].attn.qkv.weight)


def test_a_prefix_selects_the_backbone_of_another_model_or_is_refused(tmp_path):
    source = small_vit()
    weights = {f'backbone.{name}': tensor for name, tensor in source.state_dict().items()}
    torch.save(
        dict(state_dict=dict(weights, **{'decode_head.conv_seg.bias': torch.zeros(4)})), tmp_path / 'upernet.pth'
    )
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'upernet.pth'))
    vit = small_vit(init_cfg=dict(init_cfg, prefix='backbone.'))
    vit.init_weights()
    for name, tensor in source.state_dict().items():
        assert torch.equal(vit.state_dict()[name], tensor)
    with pytest.raises(
        CheckpointError, match=r"begins with .*'encoder\.'; names begin with \['backbone', 'decode_head'\]"
    ):
        small_vit(init_cfg=dict(init_cfg, prefix='encoder')).init_weights()


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda w: w.pop('blocks.1.norm1.bias'), r"Not in the file: \['blocks.1.norm1.bias'\]"),
        (lambda w: w.update(extra=torch.zeros(1)), r"Not in the model: \['extra'\]"),
        (
            lambda w: w.update(pos_embed=torch.zeros(1, 9, 32)),
            r'pos_embed: file \(1, 9, 32\), model \(1, 16, 32\).*pretrain_img_size',
        ),
    ],
)
def test_pretrained_weights_with_a_gap_are_refused(tmp_path, damage, message):
    weights = dict(small_vit().state_dict())
    damage(weights)
    write_atomically(weights, tmp_path / 'vit.pth')
    vit = small_vit(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'vit.pth')))
    with pytest.raises(CheckpointError, match=message):
        vit.init_weights()


def test_a_missing_pretrained_file_names_the_command_that_makes_it():
    vit = small_vit(init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth'))
    with pytest.raises(CheckpointError, match=r'nowhere.pth does not exist.*convert_checkpoint.py'):
        vit.init_weights()


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(scales=(4, 3)), 'scales must be among'),
        (dict(num_outs=3), 'num_outs must be at least'),
    ],
)
def test_the_pyramid_refuses_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        SimpleFeaturePyramid(32, 16, **options)


def test_the_pyramid_returns_the_scales_asked_for():
    shapes = [
        tuple(level.shape[-2:]) for level in SimpleFeaturePyramid(32, 16, num_outs=6)((torch.randn(1, 32, 8, 12),))
    ]
    assert shapes == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]


def test_the_pyramid_serves_backbones_with_smaller_patches():
    levels = SimpleFeaturePyramid(32, 16, scales=(2, 1, 0.5, 0.25), num_outs=4)((torch.randn(1, 32, 8, 12),))
    assert [tuple(level.shape[-2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
