"""Training TimmViT, a model a family: mixed precision, checkpointing, layer decay and resume."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS
from running import logged_losses, run_tool
from small_configs import write_timm_leaf

from addp_backbone.runtime.layer_decay import ViTLayerDecayConstructor

FAMILIES = {'vision_transformer': 'test_vit', 'eva': 'vit_tiny_patch16_dinov3_qkvb', 'relpos': 'test_vit_relpos'}


@pytest.mark.parametrize('family', FAMILIES)
def test_losses_in_bfloat16_after_a_resume_equal_the_unbroken_run(family, tiny_ade, tmp_path):
    leaf = write_timm_leaf(FAMILIES[family], tiny_ade, tmp_path)
    run_tool('train', leaf, '--amp', '--work-dir', tmp_path / 'whole')
    run_tool('train', leaf, '--amp', '--work-dir', tmp_path / 'cut', options=('train_cfg.max_iters=2',))
    run_tool('train', leaf, '--amp', '--work-dir', tmp_path / 'cut', '--resume')
    whole, cut = logged_losses(tmp_path / 'whole'), logged_losses(tmp_path / 'cut')
    assert whole.keys() == cut.keys() == {1, 2, 3, 4}
    assert [whole[i]['loss'] for i in (3, 4)] == [cut[i]['loss'] for i in (3, 4)]
    before, after = (torch.load(tmp_path / 'whole' / f'iter_{i}.pth', weights_only=False)['state_dict'] for i in (2, 4))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert 'backbone.vit.blocks.1.mlp.fc1.weight' in moved or 'backbone.vit.blocks.1.mlp.fc1_g.weight' in moved
    assert not any(name.startswith(('backbone.vit.blocks.0.', 'backbone.vit.patch_embed')) for name in moved), 'frozen'


@pytest.mark.parametrize('name', ['test_vit', 'vit_tiny_patch16_dinov3_qkvb', 'beit_base_patch16_224'])
def test_layer_decay_reaches_every_trained_parameter_once(name):
    model = torch.nn.Module()
    model.backbone = MODELS.build(dict(type='TimmViT', model=name, out_indices=(2,)))
    model.head = torch.nn.Linear(3, 3)
    constructor = ViTLayerDecayConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1)), dict(decay_rate='vitdet')
    )
    groups: list[dict] = []
    constructor.add_params(groups, model)
    rates = {id(param): (group['lr'], group.get('weight_decay')) for group in groups for param in group['params']}
    assert sum(len(group['params']) for group in groups) == len(rates) == len(list(model.parameters()))
    assert rates[id(model.head.weight)] == (1.0, None)
    blocks = model.backbone.vit.blocks
    for i, block in enumerate(blocks):
        weight = next(param for key, param in block.named_parameters() if key == 'attn.proj.weight')
        assert rates[id(weight)] == (pytest.approx(0.7 ** (3 - i)), None)
        assert rates[id(block.norm1.weight)][1] == 0.0
    assert rates[id(model.backbone.vit.patch_embed.proj.weight)] == (pytest.approx(0.7**4), None)
