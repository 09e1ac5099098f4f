"""Training TimmViT, a model a family: mixed precision, checkpointing, layer decay and resume."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS
from timm_training import check_that_a_resume_changes_no_loss

from addp_backbone.runtime.layer_decay import ViTLayerDecayConstructor


def test_losses_in_bfloat16_after_a_resume_equal_the_unbroken_run(tiny_ade, tmp_path):
    check_that_a_resume_changes_no_loss('vit_tiny_patch16_dinov3_qkvb', tiny_ade, tmp_path)


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
