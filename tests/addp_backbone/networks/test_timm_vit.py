"""TimmViT against timm itself: maps, windows against a brute-force loop, gradients, freezing, layers, real weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from mmengine.registry import MODELS
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone import TimmViT
from addp_backbone.networks.timm_vit.catalogue import FIXED_SIZE_FAMILIES, data_config, family_of, supported_models
from addp_backbone.networks.timm_vit.windows import regions

# One model for each way in which timm's plain ViTs differ, the smallest that has it; two blocks of each are built.
KINDS = {
    'class token': 'vit_tiny_patch16_224',
    'patch of 8': 'vit_small_patch8_224',
    'LayerScale, patch of 14': 'vit_small_patch14_dinov2',
    'registers, no position of the class token': 'vit_small_patch14_reg4_dinov2',
    'norm in front of the blocks': 'vit_xsmall_patch16_clip_224',
    'query-key norm, attention pooling': 'test_vit3',
    'RMSNorm': 'test_vit4',
    'attention and MLP in parallel': 'vit_pwee_patch16_reg1_gap_256',
    'differential attention in parallel blocks': 'vit_dpwee_patch16_reg1_gap_256',
    'distillation token': 'deit_tiny_distilled_patch16_224',
    'deit3': 'deit3_small_patch16_224',
    'rotary positions, SwiGLU': 'eva02_tiny_patch14_224',
    'DINOv3 rotary positions': 'vit_tiny_patch16_dinov3_qkvb',
    'mixed rotary positions': 'vit_small_patch16_rope_mixed_ape_224',
    'Perception Encoder': 'vit_pe_core_tiny_patch16_384',
    'relative bias by an MLP': 'test_vit_relpos',
    'relative bias by a shared MLP': 'vit_srelpos_small_patch16_224',
    'relative bias tables': 'beit_base_patch16_224',
    'windows and decomposed positions': 'samvit_base_patch16_224',
}
GRIDS = ((6, 6), (5, 8))
TOLERANCE = 1e-5
ROTARY, TABLES = 'vit_tiny_patch16_dinov3_qkvb', 'beit_base_patch16_224'
TRAINED = ('vit_tiny_patch16_224', ROTARY, TABLES)  # one of vision_transformer, eva and beit


def randomise(module: nn.Module) -> None:
    """Values that matter for every parameter: timm starts biases, LayerScale and tables at or near constants."""
    generator = torch.Generator().manual_seed(0)
    for name, param in module.named_parameters():
        mean = 1.0 if param.ndim == 1 and not name.endswith('bias') else 0.0
        with torch.no_grad():
            param.copy_(mean + (0.2 if param.ndim == 1 else 0.05) * torch.randn(param.shape, generator=generator))


def make_pair(name: str, grid: tuple[int, int], **options: object) -> tuple[TimmViT, nn.Module, Tensor]:
    """Ours and timm's with the same random weights, and an image of the grid's size."""
    patch = patch_size(name)
    size = grid[0] * patch, grid[1] * patch
    sized = dict(img_size=size) if family_of(name) in FIXED_SIZE_FAMILIES else dict(dynamic_img_size=True)
    theirs = timm.create_model(name, num_classes=0, depth=2, **sized).eval()
    randomise(theirs)
    ours = TimmViT(name, img_size=size, **{'out_indices': (0, 1), **options}).eval()
    missing = ours.vit.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    assert not missing
    return ours, theirs, torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def patch_size(name: str) -> int:
    with torch.device('meta'):
        return timm.create_model(name, num_classes=0).patch_embed.patch_size[0]


def relative_error(given: Tensor, wanted: Tensor) -> float:
    return float((given - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize('kind', KINDS)
def test_maps_equal_timms_at_a_square_and_another_size(kind):
    for grid in GRIDS:
        ours, theirs, images = make_pair(KINDS[kind], grid)
        with torch.no_grad():
            wanted = theirs.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
            given = ours(images)
        assert [tuple(feature.shape[-2:]) for feature in given] == [grid, grid]
        for ours_map, their_map in zip(given, wanted, strict=True):
            assert relative_error(ours_map, their_map) < TOLERANCE


@pytest.mark.parametrize('name', [TABLES, 'test_vit_relpos', 'samvit_base_patch16_224'])
def test_tables_made_for_another_size_are_resized_as_timm_does(name):
    ours, theirs, _ = make_pair(name, (6, 6))
    images = torch.randn(1, 3, 80, 112)
    if hasattr(theirs, 'set_input_size'):
        theirs.set_input_size((80, 112))
    with torch.no_grad():
        wanted = theirs.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
        assert relative_error(ours(images)[1], wanted) < TOLERANCE


def test_training_at_a_size_the_tables_are_not_made_for_is_refused():
    ours = make_pair(TABLES, (6, 6))[0].train()
    with pytest.raises(ValueError, match=r'made for a grid of 6 x 6 tokens and the input has 5 x 7.*img_size'):
        ours(torch.randn(1, 3, 80, 112))


def windows_by_hand(vit: TimmViT, block: nn.Module, tokens: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """A block on each window with the prefix tokens, in a loop; prefix tokens averaged over the windows."""
    H, W = grid
    num_prefix = tokens.shape[1] - H * W
    maps = tokens[:, num_prefix:].unflatten(1, grid)
    out, prefixes = torch.empty_like(maps), []
    rope = vit.vit.rope.get_embed(shape=grid) if family_of(vit.model_name) == 'eva' else None
    for top in range(0, H, size):
        for left in range(0, W, size):
            inside = slice(top, top + size), slice(left, left + size)
            window = maps[:, inside[0], inside[1]]
            sequence = torch.cat((tokens[:, :num_prefix], window.flatten(1, 2)), dim=1)
            if rope is not None:
                result = block(sequence, rope=rope.unflatten(0, grid)[inside].flatten(0, 1))
            elif family_of(vit.model_name) == 'beit':
                result = block_with_bias(block, sequence, full_bias(block, grid), grid, inside)
            else:
                result = block(sequence)
            prefixes.append(result[:, :num_prefix])
            out[:, inside[0], inside[1]] = result[:, num_prefix:].unflatten(1, window.shape[1:3])
    return torch.cat((torch.stack(prefixes).mean(0), out.flatten(1, 2)), dim=1)


def full_bias(block: nn.Module, grid: tuple[int, int]) -> Tensor:
    """Timm's own bias of the whole grid, for which the table is made."""
    fresh = copy.deepcopy(block.attn)
    del fresh.__dict__['_get_rel_pos_bias']  # ours
    assert tuple(fresh.window_size) == grid
    return fresh._get_rel_pos_bias()


def block_with_bias(block: nn.Module, sequence: Tensor, bias: Tensor, grid: tuple[int, int], inside) -> Tensor:
    """A BEiT block whose tokens are some of the grid's."""
    tokens = torch.arange(grid[0] * grid[1]).unflatten(0, grid)[inside].flatten() + 1
    tokens = torch.cat((torch.zeros(1, dtype=torch.long), tokens))
    plain = copy.deepcopy(block)
    plain.attn.__dict__.pop('_get_rel_pos_bias')
    plain.attn.relative_position_bias_table = None
    return plain(sequence, shared_rel_pos_bias=bias[:, :, tokens][:, :, :, tokens])


@pytest.mark.parametrize('name', ['vit_small_patch14_reg4_dinov2', 'vit_tiny_patch16_224', ROTARY, TABLES])
@pytest.mark.parametrize('grid', [(6, 6), (7, 5)])
def test_windows_equal_a_loop_over_windows(name, grid):
    size = 3
    ours, _, images = make_pair(name, grid, window_size=size, global_attn_indices=(1,), out_indices=(0,))
    with torch.no_grad():
        embedded = ours.trunk.embed(images)
        tokens = torch.cat((embedded.prefix, embedded.patches.flatten(1, 2)), dim=1)
        wanted = windows_by_hand(ours, ours.vit.blocks[0], tokens, grid, size)
        given = ours._run_block(0, embedded)
    assert relative_error(given.patches.flatten(1, 2), wanted[:, embedded.prefix.shape[1] :]) < TOLERANCE
    assert relative_error(given.prefix, wanted[:, : embedded.prefix.shape[1]]) < TOLERANCE


def test_a_window_as_large_as_the_map_is_global_attention():
    windowed, _, images = make_pair(ROTARY, (5, 8), window_size=8)
    everywhere = make_pair(ROTARY, (5, 8))[0]
    with torch.no_grad():
        for one, other in zip(windowed(images), everywhere(images), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_regions_cover_every_token_once():
    for grid in ((6, 6), (7, 5), (2, 9)):
        seen = torch.zeros(1, *grid, 1)
        for region in regions(grid, 3):
            ones = region.cut(torch.ones(1, *grid, 1))
            assert ones.shape[1] == region.num_windows
            region.paste(ones + region.cut(seen), seen)
        assert torch.equal(seen, torch.ones(1, *grid, 1))


@pytest.mark.parametrize('name', TRAINED)
def test_gradients_equal_timms(name):
    ours, theirs, images = make_pair(name, (4, 6))
    weights = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2))
    (ours(images)[1] * weights[:, None]).sum().backward()
    wanted = theirs.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
    (wanted * weights[:, None]).sum().backward()
    checked = 0
    for key, param in ours.vit.named_parameters():
        assert param.grad is not None, f'{key} takes no part in the output'
        assert relative_error(param.grad, theirs.get_parameter(key).grad) < 1e-4, key
        checked += 1
    assert checked > 20


@pytest.mark.parametrize('name', TRAINED)
@pytest.mark.parametrize('window_size', [0, 3])
def test_activation_checkpointing_changes_no_gradient_in_float32_and_bfloat16(name, window_size):
    plain, _, images = make_pair(name, (5, 6), window_size=window_size, global_attn_indices=(1,), drop_path_rate=0.3)
    checkpointed = make_pair(
        name, (5, 6), window_size=window_size, global_attn_indices=(1,), drop_path_rate=0.3, with_cp=True
    )[0]
    for enabled in (False, True):
        gradients = []
        for model in (plain, checkpointed):
            model.train().zero_grad()
            torch.manual_seed(3)
            with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                sum(feature.float().square().mean() for feature in model(images)).backward()
            gradients.append({key: param.grad for key, param in model.named_parameters()})
        assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])


def test_what_is_frozen_keeps_weights_mode_and_no_activations():
    model = TimmViT('vit_tiny_patch16_224', out_indices=(0, 3), frozen=2, drop_path_rate=0.5).train()
    model(torch.randn(1, 3, 32, 32))[1].square().mean().backward()
    frozen = {key for key, param in model.named_parameters() if not param.requires_grad}
    assert {'vit.cls_token', 'vit.pos_embed', 'vit.patch_embed.proj.weight', 'vit.blocks.1.mlp.fc2.bias'} <= frozen
    assert not any(key.startswith(('vit.blocks.2', 'vit.blocks.3')) for key in frozen)
    assert all((param.grad is None) == (key in frozen) for key, param in model.named_parameters())
    assert not model.vit.blocks[1].training and model.vit.blocks[2].training
    whole = TimmViT('vit_tiny_patch16_224', out_indices=(1,), frozen=True).train()
    assert not whole(torch.randn(1, 3, 32, 32))[0].requires_grad
    assert not any(param.requires_grad for param in whole.parameters()) and not whole.vit.blocks[0].training


def test_layers_and_what_never_decays():
    model = TimmViT('vit_small_patch14_reg4_dinov2', out_indices=(2,))
    assert model.get_layer_depth('backbone.vit.reg_token', 'backbone.') == (0, 5)
    assert model.get_layer_depth('backbone.vit.patch_embed.proj.weight', 'backbone.') == (0, 5)
    assert model.get_layer_depth('backbone.vit.blocks.2.attn.qkv.weight', 'backbone.') == (3, 5)
    assert model.get_layer_depth('decode_head.conv_seg.weight', 'backbone.') == (4, 5)
    layers = {model.get_layer_depth(name)[0] for name, _ in model.named_parameters()}
    assert layers == {0, 1, 2, 3}
    never = model.no_weight_decay()
    assert {
        'vit.pos_embed',
        'vit.cls_token',
        'vit.reg_token',
        'vit.blocks.0.ls1.gamma',
        'vit.blocks.1.norm2.weight',
    } <= never
    assert not {'vit.blocks.0.attn.qkv.weight', 'vit.blocks.0.attn.qkv.bias'} & never


def test_rotary_frequencies_that_are_learned_belong_to_the_stem():
    model = TimmViT('vit_small_patch16_rope_mixed_224', out_indices=(1,))
    assert model.get_layer_depth('vit.rope.freqs') == (0, 4)


def test_stochastic_depth_is_that_of_the_published_depth():
    rates = [
        block.drop_path1.drop_prob for block in TimmViT('vit_tiny_patch16_224', drop_path_rate=0.22).vit.blocks[1:]
    ]
    cut = [
        block.drop_path1.drop_prob
        for block in TimmViT('vit_tiny_patch16_224', drop_path_rate=0.22, out_indices=(5,)).vit.blocks[1:]
    ]
    assert rates[:5] == pytest.approx(cut)
    assert TimmViT('vit_tiny_patch16_224', drop_path_rate='vitdet').vit.blocks[
        11
    ].drop_path1.drop_prob == pytest.approx(0.1)


def test_a_stride_of_16_resizes_images_for_a_patch_of_14():
    ours, _, _ = make_pair('vit_small_patch14_dinov2', (4, 6), stride=16)
    images = torch.randn(1, 3, 64, 96)
    smaller = F.interpolate(images, (56, 84), mode='bilinear', antialias=True)
    plain = make_pair('vit_small_patch14_dinov2', (4, 6))[0]
    with torch.no_grad():
        for given, wanted in zip(ours(images), plain(smaller), strict=True):
            assert torch.equal(given, wanted)
    with pytest.raises(ValueError, match=r'multiples of 16, got 70 x 96.*pad_size_divisor=16'):
        ours(torch.randn(1, 3, 70, 96))


def test_normalised_maps_are_layer_norms_of_timms_and_change_no_later_block():
    ours, theirs, images = make_pair('vit_small_patch14_dinov2', (5, 8), norm_maps=True)
    wanted = theirs.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
    for one, other in zip(ours(images), wanted, strict=True):
        other = F.layer_norm(other.permute(0, 2, 3, 1), other.shape[1:2]).permute(0, 3, 1, 2)
        assert relative_error(one.detach(), other.detach()) < TOLERANCE


def test_positions_without_antialiasing_differ_and_leave_the_own_grid_alone():
    sharp, _, _ = make_pair('vit_small_patch14_dinov2', (4, 6), pos_antialias=False)
    plain = make_pair('vit_small_patch14_dinov2', (4, 6))[0]
    small, own = torch.randn(1, 3, 56, 84), torch.randn(1, 3, 518, 518)
    with torch.no_grad():
        assert relative_error(sharp.trunk.embed(small).patches, plain.trunk.embed(small).patches) > 1e-3
        assert torch.equal(sharp.trunk.embed(own).patches, plain.trunk.embed(own).patches)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('vit_small_patch14_dinov9', r'timm .* has no model .*did you mean vit_small_patch14_dinov2'),
        ('swin_tiny_patch4_window7_224', r'timm.models.swin_transformer cannot be a TimmViT: it is no plain ViT'),
        ('vit_small_patch14_dinov2.lvd143m', r'has no weights .lvd143m. of vit_small_patch14_dinov2, only lvd142m'),
        ('vit_small_r26_s32_224', r'vision_transformer_hybrid cannot be .*convolutional stem'),
    ],
)
def test_other_models_are_refused_by_name_with_the_reason(name, message):
    with pytest.raises(ValueError, match=message):
        TimmViT(name)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(out_indices=(12,)), 'out_indices must be ascending block indices'),
        (dict(out_indices=()), r'out_indices must be a list or tuple of whole numbers, e.g. \(11,\), got \(\)'),
        (dict(out_indices=8), r'out_indices must be a list or tuple of whole numbers, e.g. \(11,\), got 8'),
        (dict(with_cp='offload'), "with_cp must be True or False, got 'offload'"),
        (dict(window_size=2.5), 'window_size must be >= 0, a whole number'),
        (dict(frozen=13), r'frozen must be True, False or a number of blocks in \[0, 12\], got 13'),
        (dict(window_size=-1), 'window_size must be >= 0'),
        (dict(drop_path_rate='mae'), "drop_path_rate is 'mae'"),
        (dict(stride=0), 'stride must be positive'),
        (dict(pretrained=True, init_cfg=dict(type='Pretrained', checkpoint='x.pth')), 'weights come from one place'),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TimmViT('vit_tiny_patch16_224', **options)


def test_windows_around_sams_own_windows_are_refused():
    with pytest.raises(ValueError, match=r'windows of 14 tokens of its own'):
        TimmViT('samvit_base_patch16_224', window_size=7, out_indices=(0,))


def test_timms_whole_list_is_supported():
    names = supported_models()
    assert len(names) == sum(
        len(timm.list_models(module=module))
        for module in (
            'vision_transformer',
            'eva',
            'deit',
            'beit',
            'vision_transformer_sam',
            'vision_transformer_relpos',
        )
    )
    assert {'vit_so400m_patch14_siglip_378', 'vit_7b_patch16_dinov3', 'vit_pe_spatial_large_patch14_448'} <= set(names)


def test_normalisation_is_the_models_own():
    assert data_config('vit_small_patch14_dinov2').mean == pytest.approx((123.675, 116.28, 103.53))
    assert data_config('vit_base_patch16_siglip_224').mean == pytest.approx((127.5, 127.5, 127.5))
    assert data_config('vit_base_patch32_clip_224').std[0] == pytest.approx(0.26862954 * 255)


def test_it_is_registered_for_mmdet_and_mmseg():
    model = MODELS.build(dict(type='TimmViT', model='vit_tiny_patch16_224', out_indices=(1,)))
    assert isinstance(model, TimmViT) and model.out_channels == (192,)


def real_photograph(shared_dir) -> Tensor:
    path = sorted((shared_dir / 'data' / 'camvid' / 'images' / 'val').iterdir())[0]
    pixels = np.asarray(Image.open(path).convert('RGB').resize((392, 308), Image.Resampling.BICUBIC), dtype=np.float32)
    config = data_config('vit_small_patch14_dinov2')
    return torch.from_numpy((pixels - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)).permute(
        2, 0, 1
    )[None]


def test_real_weights_on_a_real_photograph_give_timms_features(shared_dir):
    path = shared_dir / 'weights' / 'dinov2_small_derived.safetensors'
    theirs = timm.create_model('vit_small_patch14_dinov2', num_classes=0, dynamic_img_size=True).eval()
    theirs.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    ours = TimmViT(
        'vit_small_patch14_dinov2', out_indices=(8, -1), init_cfg=dict(type='Pretrained', checkpoint=str(path))
    )
    ours.init_weights()
    ours.eval()
    image = real_photograph(shared_dir)
    with torch.no_grad():
        wanted = theirs.forward_intermediates(image, indices=[8, 11], intermediates_only=True)
        for given, reference in zip(ours(image), wanted, strict=True):
            assert relative_error(given, reference) < TOLERANCE
        for part in ('ls1', 'ls2'):  # what the comparison must not be blind to
            for block in ours.vit.blocks:
                setattr(block, part, nn.Identity())
        assert relative_error(ours(image)[1], wanted[1]) > 0.05
