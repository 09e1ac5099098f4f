"""What the class token attends to: timm's own attention weights."""

import numpy as np
import pytest
import torch

from experiments.probes.attention import class_attention
from experiments.probes.backbones import build, find_source


@pytest.mark.parametrize('name', ['random/test_vit', 'random/eva02_tiny_patch14_224'])
def test_the_map_is_timms_attention_of_the_class_token_mean_over_heads(name):
    source = find_source(name)
    backbone = build(source, (source.depth,))
    side = source.patch_size
    images = torch.randn(2, 3, 3 * side, 4 * side, generator=torch.Generator().manual_seed(0))
    found = class_attention(backbone, images)
    attention, weights = backbone.vit.blocks[-1].attn, []
    attention.fused_attn = False  # timm then computes the weights, and drops some of none
    attention.attn_drop.register_forward_hook(lambda module, inputs, output: weights.append(output))
    backbone(images)
    expected = weights[0].mean(dim=1)[:, 0, -12:].reshape(2, 3, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert (found.sum(axis=(1, 2)) < 1).all()


def test_backbones_tell_whether_they_have_a_class_token():
    names = ('test_vit', 'tiny', 'vit_base_patch16_siglip_256', 'eva02_tiny_patch14_224')
    assert [find_source(f'random/{name}').has_class_token for name in names] == [True, False, False, True]
