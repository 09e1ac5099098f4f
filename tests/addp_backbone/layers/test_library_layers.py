"""What timm supplies in place of own code: the channel norm and the resampling of position embeddings."""

import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d, resample_abs_pos_embed
from torch import nn
from torch.nn import functional as F

import addp_backbone  # noqa: F401  (registers ChannelLN)


@pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16])
def test_channel_norm_equals_layer_norm_over_the_last_dimension_to_the_bit(dtype):
    torch.manual_seed(0)
    norm, peer = MODELS.build(dict(type='ChannelLN', num_channels=12)), nn.LayerNorm(12, eps=1e-6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    peer.load_state_dict(norm.state_dict())
    results = []
    for layer, channels_last in ((norm, False), (peer, True)):
        x = torch.randn(2, 12, 5, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
            y = F.conv2d(x, torch.ones(12, 12, 1, 1))  # half precision under autocast
            y = layer(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if channels_last else layer(y)
        y.float().mul(torch.arange(7)).sum().backward()
        results.append([y, x.grad, layer.weight.grad, layer.bias.grad])
    assert all(torch.equal(got, wanted) for got, wanted in zip(*results, strict=True))


def test_mmcv_names_the_channel_norm_ln_in_its_modules():
    name, layer = build_norm_layer(dict(type='ChannelLN', eps=1e-6), 8)
    assert name == 'ln' and isinstance(layer, LayerNorm2d) and layer.eps == 1e-6


@pytest.mark.parametrize('num_prefix_tokens', [0, 1])
@pytest.mark.parametrize('grid', [(4, 4), (2, 8), (7, 3), (9, 9)])
def test_position_embeddings_are_resampled_as_vitdet_does_to_the_bit(grid, num_prefix_tokens):
    embed = torch.randn(1, num_prefix_tokens + 16, 6)
    got = resample_abs_pos_embed(embed, [*grid], [4, 4], num_prefix_tokens=num_prefix_tokens, antialias=False)
    maps = embed[:, num_prefix_tokens:].reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=grid, mode='bicubic', align_corners=False)
    wanted = torch.cat((embed[:, :num_prefix_tokens], maps.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)
    assert torch.equal(got, wanted)
    assert (got is embed) == (grid == (4, 4))
