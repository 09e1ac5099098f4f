"""Files for TimmViT as people have them: transformers', Meta's and OpenCLIP's names, wrappers, several networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from addp_backbone import TimmViT
from addp_backbone.checkpoint import CheckpointError
from addp_backbone.networks.timm_vit.weights import load_file

NAME = 'vit_tiny_patch16_224'
DEPTH = 2


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, param in module.named_parameters():
        mean = 1.0 if param.ndim == 1 and 'norm' in name and 'weight' in name else 0.0
        with torch.no_grad():
            param.copy_(mean + (0.2 if param.ndim == 1 else 0.05) * torch.randn(param.shape, generator=generator))
    return module.eval()


def theirs(name: str = NAME) -> nn.Module:
    return randomised(timm.create_model(name, num_classes=0, dynamic_img_size=True, depth=DEPTH))


def ours(name: str, path: Path, **options: object) -> TimmViT:
    init_cfg = dict(type='Pretrained', checkpoint=str(path), **options.pop('init', {}))  # type: ignore[arg-type]
    model = TimmViT(name, out_indices=(DEPTH - 1,), init_cfg=init_cfg, **options)  # type: ignore[arg-type]
    model.init_weights()
    return model.eval()


def hugging_face(kind: str, **options: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(transformers, kind.replace('Model', 'Config'))(num_hidden_layers=DEPTH, **options)
        return randomised(getattr(transformers, kind)(config))

    return make


SMALL = dict(hidden_size=384, num_attention_heads=6)
BASE = dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
# case -> (timm's name, image size in pixels, transformers' model)
HUGGING_FACE = {
    'Dinov2': ('vit_small_patch14_dinov2', 84, hugging_face('Dinov2Model', image_size=84, patch_size=14, **SMALL)),
    'Dinov2 with registers': (
        'vit_small_patch14_reg4_dinov2',
        84,
        hugging_face('Dinov2WithRegistersModel', image_size=84, patch_size=14, num_register_tokens=4, **SMALL),
    ),
    'SigLIP': (
        'vit_base_patch16_siglip_224',
        96,
        # timm computes this file with the exact GELU; the name, not a tensor, says so
        hugging_face('SiglipVisionModel', image_size=96, patch_size=16, hidden_act='gelu', **BASE),
    ),
    'CLIP': (
        'vit_base_patch32_clip_quickgelu_224',
        96,
        hugging_face('CLIPVisionModel', image_size=96, patch_size=32, **BASE),
    ),
    'MAE': (
        'vit_base_patch16_224',
        96,
        hugging_face('ViTMAEModel', image_size=96, patch_size=16, mask_ratio=0.0, layer_norm_eps=1e-6, **BASE),
    ),
    'I-JEPA': (
        'vit_base_patch16_gap_224',
        96,
        # timm's model of this name has 16 heads, which no tensor tells
        hugging_face(
            'IJepaModel', image_size=96, patch_size=16, layer_norm_eps=1e-6, **{**BASE, 'num_attention_heads': 16}
        ),
    ),
    'SAM': (
        'samvit_base_patch16',
        256,
        hugging_face('SamVisionModel', image_size=256, global_attn_indexes=[2, 5, 8, 11]),
    ),
    'DINOv3': (
        'vit_small_patch16_dinov3_qkvb',
        96,
        hugging_face(
            'DINOv3ViTModel', image_size=96, patch_size=16, intermediate_size=1536, num_register_tokens=4, **SMALL
        ),
    ),
}


@pytest.mark.parametrize('case', HUGGING_FACE)
@pytest.mark.parametrize('how', ['save_pretrained', 'state_dict'])
def test_a_model_of_transformers_gives_the_same_features(case, how, tmp_path):
    name, size, make = HUGGING_FACE[case]
    reference = make()
    path = tmp_path / 'model.safetensors'
    if how == 'save_pretrained':  # the names of published files
        reference.save_pretrained(tmp_path)
    else:  # those of transformers 5
        save_file(reference.state_dict(), path)
    model = ours(name, path, img_size=size)
    images = torch.randn(1, 3, size, size)
    extra = dict(noise=torch.arange((size // 16) ** 2)[None].float()) if case == 'MAE' else {}  # keeps the order
    with torch.no_grad():
        given = model(images)[0]
        hidden = reference(images, output_hidden_states=True, **extra).hidden_states[DEPTH]
    if hidden.ndim == 3:
        hidden = hidden[:, -given[0, 0].numel() :].unflatten(1, given.shape[-2:])
    assert (given - hidden.permute(0, 3, 1, 2)).abs().max() < 1e-4 * hidden.abs().max()


def test_dinov2s_own_positions_between_sizes_come_without_antialiasing(tmp_path):
    reference = HUGGING_FACE['Dinov2'][2]()
    reference.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 56, 70)
    with torch.no_grad():
        wanted = reference(images, output_hidden_states=True).hidden_states[DEPTH][:, 1:].unflatten(1, (4, 5))
        for antialias, equal in ((False, True), (True, False)):
            model = ours('vit_small_patch14_dinov2', tmp_path / 'model.safetensors', pos_antialias=antialias)
            error = (model(images)[0].permute(0, 2, 3, 1) - wanted).abs().max() / wanted.abs().max()
            assert (error < 1e-4) == equal


def as_meta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, 'mask_token': torch.zeros(1, 192), 'decoder_embed.weight': torch.zeros(4, 192)}


def as_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, value in state.items():
        for new, old in (
            ('patch_embed.proj', 'conv1'),
            ('norm_pre', 'ln_pre'),
            ('blocks.', 'transformer.resblocks.'),
            ('norm1', 'ln_1'),
            ('norm2', 'ln_2'),
            ('attn.qkv.', 'attn.in_proj_'),
            ('attn.proj', 'attn.out_proj'),
            ('mlp.fc1', 'mlp.c_fc'),
            ('mlp.fc2', 'mlp.c_proj'),
        ):
            name = name.replace(new, old)
        name = {
            'cls_token': 'class_embedding',
            'pos_embed': 'positional_embedding',
            'norm.weight': 'ln_post.weight',
            'norm.bias': 'ln_post.bias',
        }.get(name, name)
        out[f'visual.{name}'] = (
            value.reshape(-1) if name == 'class_embedding' else value[0] if name == 'positional_embedding' else value
        )
    text = {
        'token_embedding.weight': torch.zeros(3, 4),
        'transformer.resblocks.0.ln_1.weight': torch.ones(4),
        'logit_scale': torch.zeros(()),
    }
    return {**out, 'visual.proj': torch.zeros(192, 8), **text}


WRAPPERS = {
    'plain': lambda state: state,
    'under model': lambda state: dict(model=state, epoch=3),
    'DDP': lambda state: {f'module.{name}': value for name, value in state.items()},
    'compiled, Lightning': lambda state: dict(
        state_dict={f'model._orig_mod.{name}': value for name, value in state.items()}
    ),
    'DINO student': lambda state: dict(student={f'module.backbone.{name}': value for name, value in state.items()}),
    'I-JEPA target': lambda state: dict(target_encoder={f'module.{name}': value for name, value in state.items()}),
    'our detector': lambda state: dict(
        state_dict={f'backbone.vit.{name}': value for name, value in state.items()}
        | {'neck.levels.0.weight': torch.zeros(3)}
    ),
    'with an optimizer': lambda state: dict(model=state, optimizer=dict(state={0: dict(exp_avg=torch.zeros(2))})),
    'half precision': lambda state: {name: value.half() for name, value in state.items()},
    "MAE's pre-training": as_meta,
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_wrappers_as_people_have_them_load_to_the_last_tensor(wrapper, tmp_path):
    source = theirs()
    torch.save(WRAPPERS[wrapper](source.state_dict()), tmp_path / 'file.pth')
    model = ours(NAME, tmp_path / 'file.pth')
    tolerance = 1e-3 if wrapper == 'half precision' else 0
    for name, value in model.vit.state_dict().items():
        torch.testing.assert_close(value, source.state_dict()[name], rtol=tolerance, atol=tolerance)


def test_an_open_clip_file_loads_its_visual_tower(tmp_path):
    source = theirs('vit_xsmall_patch16_clip_224')
    torch.save(as_open_clip(source.state_dict()), tmp_path / 'clip.pt')
    model = ours('vit_xsmall_patch16_clip_224', tmp_path / 'clip.pt')
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.vit.state_dict().items())


@pytest.mark.parametrize('with_mask_token', [True, False])
def test_metas_dinov2_with_registers_loads(with_mask_token, tmp_path):
    state = dict(TimmViT('vit_small_patch14_reg4_dinov2', out_indices=(DEPTH - 1,)).vit.state_dict())
    state['register_tokens'] = state.pop('reg_token')
    state['pos_embed'] = torch.randn(1, 1 + 37 * 37, 384)
    if with_mask_token:
        state['mask_token'] = torch.zeros(1, 384)
    torch.save(state, tmp_path / 'meta.pth')
    model = ours('vit_small_patch14_reg4_dinov2', tmp_path / 'meta.pth')
    assert torch.equal(model.vit.pos_embed, state['pos_embed'][:, 1:])
    torch.testing.assert_close(model.vit.cls_token, state['cls_token'] + state['pos_embed'][:, :1])


def test_a_file_of_another_resolution_keeps_its_own_grid_of_positions(tmp_path):
    source = randomised(timm.create_model(NAME, num_classes=0, img_size=96, dynamic_img_size=True, depth=DEPTH))
    torch.save(source.state_dict(), tmp_path / 'file.pth')
    images = torch.randn(1, 3, 80, 112)
    with torch.no_grad():
        wanted = source.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
        torch.testing.assert_close(ours(NAME, tmp_path / 'file.pth')(images)[0], wanted)


def test_two_vits_in_a_file_ask_which_and_a_prefix_answers(tmp_path):
    source, other = theirs().state_dict(), {name: value + 1 for name, value in theirs().state_dict().items()}
    contents = dict(
        student={f'module.backbone.{name}': value for name, value in other.items()},
        teacher={f'backbone.{name}': value for name, value in source.items()},
    )
    torch.save(contents, tmp_path / 'dino.pth')
    with pytest.raises(
        CheckpointError,
        match=r"holds 2 ViTs: set init_cfg.prefix to one of \['student.module.backbone.', 'teacher.backbone.'\]",
    ):
        ours(NAME, tmp_path / 'dino.pth')
    for prefix in ('teacher', 'teacher.backbone.'):
        model = ours(NAME, tmp_path / 'dino.pth', init=dict(prefix=prefix))
        assert all(torch.equal(value, source[name]) for name, value in model.vit.state_dict().items())
    with pytest.raises(CheckpointError, match=r"no ViT of a known layout behind prefix 'ema'.*there are ViTs behind"):
        ours(NAME, tmp_path / 'dino.pth', init=dict(prefix='ema'))


DAMAGE = {
    'a missing tensor': (lambda state: state.pop('blocks.1.mlp.fc2.bias'), r'Missing: blocks.1.mlp.fc2.bias'),
    'an unknown tensor': (
        lambda state: state.update({'blocks.1.attn.rel_pos_h': torch.zeros(3)}),
        r'Without a place in the model: blocks.1.attn.rel_pos_h',
    ),
    'another shape': (
        lambda state: state.update({'blocks.0.norm1.bias': torch.zeros(5)}),
        r'Of another shape: blocks.0.norm1.bias \(5,\) instead of \(192,\)',
    ),
    'LayerScale that the model has not': (
        lambda state: state.update({'blocks.0.ls1.gamma': torch.ones(192)}),
        r'Without a place in the model: blocks.0.ls1.gamma',
    ),
    'registers that the model has not': (
        lambda state: state.update({'reg_token': torch.zeros(1, 4, 192)}),
        rf'the file has reg_token, which {NAME} has not. Give the timm name',
    ),
    'patches of another size, which timm would resample': (
        lambda state: state.update({'patch_embed.proj.weight': torch.zeros(192, 3, 8, 8)}),
        rf"the file's patches have a side of 8 px, those of {NAME} 16 px",
    ),
    'positions of other tokens': (
        lambda state: state.update({'pos_embed': torch.zeros(1, 196, 192)}),
        r'the file has 196 absolute positions; .* a square number of the patches. and 1 of class',
    ),
    "a shape that timm's converter fails at": (
        lambda state: state.update({'pos_embed': torch.zeros(197, 192)}),
        rf"timm's converter cannot make {NAME} of this file \(RuntimeError",
    ),
    'no ViT': (
        lambda state: [state.clear(), state.update({'layer1.0.conv.weight': torch.zeros(3)})],
        r'no ViT of a known layout was found among 1 tensors',
    ),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_loaded(damage, tmp_path):
    state = dict(theirs().state_dict())
    spoil, message = DAMAGE[damage]
    spoil(state)
    torch.save(state, tmp_path / 'file.pth')
    model = TimmViT(NAME, out_indices=(DEPTH - 1,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_file(model, tmp_path / 'file.pth')
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_report_accounts_for_every_tensor_and_says_what_was_assumed(tmp_path):
    state = as_meta(theirs().state_dict())
    torch.save(dict(model=state), tmp_path / 'file.pth')
    report = load_file(TimmViT(NAME, out_indices=(0,)), tmp_path / 'file.pth')
    assert {f'model.{name}' for name in state} == {f'model.{name}' for name in report.loaded} | report.dropped.keys()
    assert report.dropped['model.blocks.1.norm1.weight'].startswith('block behind the last output map')
    assert report.dropped['model.mask_token'] == 'stands for masked patches in pre-training'
    assert any('activation GELU' in note for note in report.notes)


def test_the_report_tells_that_tables_of_relative_positions_were_resized(tmp_path):
    torch.save(timm.create_model('beit_base_patch16_224', num_classes=0, depth=1).state_dict(), tmp_path / 'beit.pth')
    notes = [
        load_file(TimmViT('beit_base_patch16_224', size, out_indices=(0,)), tmp_path / 'beit.pth').notes
        for size in (224, 256)
    ]
    resized = [[note for note in of_size if note.startswith('1 tables of relative')] for of_size in notes]
    assert resized == [[], ['1 tables of relative positions resized for img_size (256, 256)']]


def test_without_a_network_the_error_says_which_file_to_fetch_and_what_to_do_with_it(monkeypatch, tmp_path):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    model = TimmViT(NAME, out_indices=(0,), pretrained=True)
    with pytest.raises(
        CheckpointError,
        match=r'vit_tiny_patch16_224 could not be fetched.*model.safetensors from https://huggingface.co/timm/.*init_cfg',
    ):
        model.init_weights()
