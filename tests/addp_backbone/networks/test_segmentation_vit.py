"""The backbone for UperNet: equal to mmsegmentation's MAE backbone, and loading of pre-training checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from mmseg.engine.optimizers import LearningRateDecayOptimizerConstructor
from mmseg.models.backbones import MAE
from torch import Tensor, nn

from addp_backbone.checkpoint.convert import CheckpointError, convert_state_dict
from addp_backbone.networks import segmentation_vit
from addp_backbone.networks.segmentation_vit import ADDPSegViT, make_bias_index
from addp_backbone.networks.vit import ADDPViT
from addp_backbone.runtime.layer_decay import ViTLayerDecayConstructor
from pretrain import ADDP

ARCH = dict(width=24, depth=4, num_heads=3)
PATCH_PX = 8
PEER_NAMES = (
    ('ln1', 'norm1'),
    ('ln2', 'norm2'),
    ('ffn.layers.0.0', 'mlp.fc1'),
    ('ffn.layers.1', 'mlp.fc2'),
    ('layers', 'blocks'),
    ('patch_embed.projection', 'patch_embed.proj'),
)


def own_name(peer_name: str) -> str:
    for theirs, ours in PEER_NAMES:
        peer_name = peer_name.replace(theirs, ours)
    return peer_name


def make_pair(size: tuple[int, int] = (64, 64), drop_path_rate: float = 0.0) -> tuple[MAE, ADDPSegViT]:
    """Mmsegmentation's backbone and ours with the same random values in every tensor."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch.meshgrid
        peer = MAE(
            img_size=size,
            patch_size=PATCH_PX,
            embed_dims=ARCH['width'],
            num_layers=ARCH['depth'],
            num_heads=ARCH['num_heads'],
            out_indices=(0, 1, 2, 3),
            norm_cfg=dict(type='LN', eps=1e-6),
            init_values=1.0,
            drop_path_rate=drop_path_rate,
        )
    own = ADDPSegViT(ARCH, size, PATCH_PX, drop_path_rate=drop_path_rate, out_indices=(0, 1, 2, 3))
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    own.load_state_dict(
        {own_name(name): value for name, value in peer.state_dict().items() if 'position_index' not in name}
    )
    return peer, own


@pytest.mark.parametrize('size', [(64, 64), (32, 72)])
def test_outputs_and_gradients_equal_mmsegmentations(size: tuple[int, int]) -> None:
    peer, own = make_pair(size)
    images = torch.randn(2, 3, *size)
    outputs = [model(images) for model in (peer, own)]
    for wanted, found in zip(*outputs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    factors = [torch.randn_like(map_) for map_ in outputs[0]]
    for maps in outputs:
        sum((map_ * factor).sum() for map_, factor in zip(maps, factors, strict=True)).backward()
    gradients = {own_name(name): parameter.grad for name, parameter in peer.named_parameters()}
    for name, parameter in own.named_parameters():
        scale = float(gradients[name].abs().max())
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_the_bias_index_is_mmsegmentations_for_grids_that_are_no_squares() -> None:
    peer, own = make_pair((16, 40))
    assert torch.equal(own.bias_index, peer.layers[0].attn.relative_position_index)
    assert make_bias_index((1, 1)).tolist() == [
        [3, 1],
        [2, 0],
    ]  # cls to cls, cls to patch; patch to cls, patch to patch


def groups_of(constructor: Any, backbone: nn.Module) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) of every parameter of a model with this backbone and a head."""
    model = nn.Module()
    model.backbone, model.head = backbone, nn.Linear(2, 2)
    optimizer = constructor(model).optimizer
    by_id = {id(p): (g['lr'], g['weight_decay']) for g in optimizer.param_groups for p in g['params']}
    return {own_name(name): by_id[id(parameter)] for name, parameter in model.named_parameters()}


def test_layer_decay_and_weight_decay_equal_mmsegmentations() -> None:
    peer, own = make_pair()
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))
    theirs = LearningRateDecayOptimizerConstructor(
        wrapper, dict(num_layers=ARCH['depth'], decay_rate=0.65, decay_type='layer_wise')
    )
    wanted = groups_of(theirs, peer)
    found = groups_of(ViTLayerDecayConstructor(wrapper, dict(decay_rate=0.65, no_weight_decay='1d')), own)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name


def test_a_fresh_backbone_has_neutral_scales_and_biases() -> None:
    own = ADDPSegViT(ARCH, 64, PATCH_PX)
    for name, parameter in own.named_parameters():
        if 'gamma' in name:
            assert (parameter == 1).all()
        if 'bias_table' in name:
            assert (parameter == 0).all()
    assert own.out_indices == (0, 1, 2, 3) and own.out_channels == (24,) * 4


def test_checkpointing_changes_neither_outputs_nor_gradients() -> None:
    _, own = make_pair()
    images = torch.randn(1, 3, 64, 64)
    results = []
    for own.with_cp in (False, True):
        own.zero_grad()
        own(images)[-1].square().sum().backward()
        results.append([parameter.grad.clone() for parameter in own.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r'images of 32 x 64 px.*made for 64 x 64: set model\.backbone\.img_size'):
        ADDPSegViT(ARCH, 64, PATCH_PX)(torch.zeros(1, 3, 32, 64))


# Loading.


def addp_file(folder: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict of an ADDP at 32 px, and its file."""
    torch.manual_seed(1)
    sizes = dict(decoder_depth=1, decoder_num_heads=3)
    tokenizer = dict(
        base_channels=8, channel_multipliers=(1,) * 4, num_res_blocks=1, latent_channels=4, num_codes=8, norm_groups=4
    )
    addp = ADDP(ARCH, img_size=32, patch_size=8, tokenizer=tokenizer, token_predictor=dict(arch=ARCH, **sizes), **sizes)
    path = folder / 'addp.pth'
    torch.save(addp.state_dict(), path)
    return addp.state_dict(), str(path)


def load(path: str, **options: Any) -> ADDPSegViT:
    config = dict(arch=ARCH, img_size=64, patch_size=PATCH_PX, init_cfg=dict(type='Pretrained', checkpoint=path))
    backbone = MODELS.build(dict(type='ADDPSegViT', **{**config, **options}))
    backbone.init_weights()
    return backbone


def test_a_pre_training_checkpoint_gives_the_trunk_with_cls_token_and_positions_resized_once(tmp_path: Path) -> None:
    source, path = addp_file(tmp_path)
    own = load(path).state_dict()
    assert torch.equal(own['cls_token'], source['cls_token'])
    assert torch.equal(own['blocks.3.mlp.fc2.weight'], source['blocks.3.mlp.fc2.weight'])
    assert torch.equal(own['pos_embed'][:, 0], source['pos_embed'][:, 0])
    grid = source['pos_embed'][:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    wanted = nn.functional.interpolate(grid, size=(8, 8), mode='bicubic', align_corners=False).flatten(2)
    torch.testing.assert_close(own['pos_embed'][:, 1:], wanted.transpose(1, 2), rtol=1e-5, atol=1e-6)
    assert load(path, img_size=(32, 64)).pos_embed.shape == (1, 1 + 4 * 8, 24)


def test_a_converted_file_gives_the_same_backbone(tmp_path: Path) -> None:
    source, path = addp_file(tmp_path)
    torch.save(convert_state_dict(source, img_size=None, patch_size=8, keep_cls=True).state_dict, tmp_path / 'c.pth')
    states = [load(file).state_dict() for file in (path, str(tmp_path / 'c.pth'))]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_file_for_detection_is_accepted_but_its_missing_cls_token_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(segmentation_vit, 'print_log', lambda message, **_: messages.append(message))
    source, _ = addp_file(tmp_path)
    torch.save(convert_state_dict(source, img_size=None, patch_size=8).state_dict, tmp_path / 'b.pth')
    own = load(str(tmp_path / 'b.pth'))
    assert torch.equal(own.state_dict()['blocks.0.attn.qkv.weight'], source['blocks.0.attn.qkv.weight'])
    assert (own.pos_embed[:, 0] == 0).all()
    assert 'has no cls token' in messages[0] and '--for segmentor' in messages[0]


def test_a_trained_segmentors_backbone_loads_by_its_prefix(tmp_path: Path) -> None:
    _, own = make_pair()
    torch.save({f'backbone.{name}': value for name, value in own.state_dict().items()}, tmp_path / 's.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 's.pth'), prefix='backbone')
    again = load('', init_cfg=init_cfg)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in own.state_dict().items())


def test_a_file_of_another_size_or_without_a_tensor_is_refused(tmp_path: Path) -> None:
    source, path = addp_file(tmp_path)
    with pytest.raises(CheckpointError, match=r'does not fit this ViT.*blocks\.4'):
        load(path, arch=dict(width=24, depth=6, num_heads=3))
    del source['blocks.2.norm1.weight']
    torch.save(source, path)
    with pytest.raises(CheckpointError, match=r'Missing: blocks\.2\.norm1\.weight'):
        load(path)


def test_it_equals_the_backbone_of_detection_but_for_the_cls_token_when_its_own_parts_are_neutral() -> None:
    torch.manual_seed(0)
    plain = ADDPViT(ARCH, 64, PATCH_PX, pretrain_img_size=64, window_size=0, rel_pos=False, out_indices=(-1,)).eval()
    own = ADDPSegViT(ARCH, 64, PATCH_PX, out_indices=(-1,)).eval()
    own.load_state_dict(
        plain.state_dict() | dict(pos_embed=torch.cat((torch.zeros(1, 1, 24), plain.pos_embed), 1)), strict=False
    )
    with torch.no_grad():
        for block in own.blocks:  # nobody attends to cls
            block.attn.relative_position_bias_table[-2] = -1e9
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(own(images)[0], plain(images)[0], rtol=1e-5, atol=1e-5)
