"""``--compile``: parts are compiled in place, without graph breaks, to the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from tiny_addp import NUM_TOKENS, tiny_addp, tiny_batch
from tiny_training import random_addp
from torch import nn

from addp_backbone import ADDPViT, TimmViT
from addp_backbone.layers.block import Block
from addp_backbone.runtime.compiling import check_compile, compile_networks
from addp_backbone.runtime.config_checks import LaunchError

TINY = dict(width=32, depth=2, num_heads=2)


class Model(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize('kind', ['ADDPViT', 'TimmViT'])
def test_a_compiled_backbone_is_one_graph_of_the_same_numbers_and_names(kind: str) -> None:
    torch.manual_seed(0)
    backbone = (
        ADDPViT(TINY, img_size=48, window_size=2, global_attn_indices=(1,), rel_pos=False)
        if kind == 'ADDPViT'
        else TimmViT('vit_tiny_patch16_224', img_size=48, out_indices=(0,))
    )
    model = Model(backbone.train())
    names = list(model.state_dict())
    images = torch.rand(2, 3, 48, 48)
    wanted = backbone(images)[-1]
    wanted.square().mean().backward()
    gradient = next(backbone.parameters()).grad.clone()
    backbone.zero_grad()
    assert compile_networks(model, backend='eager') == ['backbone']
    got = backbone(images)[-1]
    got.square().mean().backward()
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(next(backbone.parameters()).grad, gradient, rtol=1e-5, atol=1e-7)
    assert list(model.state_dict()) == names
    assert not torch._dynamo.utils.counters['graph_break']


def test_compiled_addp_gives_the_same_loss_for_any_number_of_masked_tokens_with_one_graph_a_part() -> None:
    model = random_addp(dropout=0.0).train()
    images, mask, noisier = tiny_batch(4)
    ratios = [mask, noisier, torch.arange(NUM_TOKENS).expand(4, -1) < 9]
    samples = [model.addp.diffuse(images, *pair) for pair in ((mask, noisier),) * 3]
    wanted = [model.addp.masked_loss(sample, m) for sample, m in zip(samples, ratios, strict=True)]
    names = list(model.state_dict())
    assert compile_networks(model, backend='eager') == ['addp.diffuse', 'addp.blocks', 'addp.decoder_blocks']
    sample = model.addp.diffuse(images, mask, noisier)
    for ours, theirs in zip(sample, samples[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    graphs = []
    for loss, m in zip(wanted, ratios, strict=True):
        torch.testing.assert_close(model.addp.masked_loss(sample, m), loss, rtol=1e-5, atol=1e-5)
        graphs.append(torch._dynamo.utils.counters['stats']['unique_graphs'])
    assert graphs[0] == graphs[-1] == 3
    assert not torch._dynamo.utils.counters['graph_break'] and list(model.state_dict()) == names


def test_dropout_does_not_break_the_graph() -> None:
    block = Block(32, 2, dropout=0.1, drop_path=0.1).train()
    out = torch.compile(block, fullgraph=True, backend='eager')(torch.rand(2, 9, 32))
    assert torch.isfinite(out).all()


def test_a_copy_of_a_compiled_model_computes_with_its_own_weights() -> None:
    model = tiny_addp()
    batch = tiny_batch(2)
    model.compile_parts('eager')
    model.diffuse(*batch)
    other = copy.deepcopy(model)
    nn.init.normal_(other.tokenizer.codebook, std=0.3)
    assert not torch.equal(other.diffuse(*batch).noisy_images, model.diffuse(*batch).noisy_images)


@pytest.mark.parametrize(
    ('config', 'reason'),
    [
        (dict(strategy=dict(type='StageFSDPStrategy')), 'never tried with shards'),
        (dict(compile=True), 'the whole step'),
    ],
)
def test_compiling_is_refused_where_it_cannot_be_right(config: dict, reason: str) -> None:
    with pytest.raises(LaunchError, match=reason):
        check_compile(Config(config))


def test_a_machine_without_a_compiler_and_a_model_without_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('shutil.which', lambda name: None)
    with pytest.raises(LaunchError, match=r'needs a C\+\+ compiler.*install g\+\+'):
        check_compile(Config())
    with pytest.raises(LaunchError, match='Sequential has no part'):
        compile_networks(nn.Sequential())
