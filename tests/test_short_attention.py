"""Attention of short sequences in two bytes equals torch's fused attention; where it is in force."""

import pytest
import torch
from torch.nn import functional as F

from addp_backbone import layers
from addp_backbone.layers import Attention
from addp_backbone.short_attention import SHORT, short_attention


def make(dtype, tokens=33):
    torch.manual_seed(0)
    return [torch.randn(2, 3, tokens, 16, dtype=dtype, requires_grad=True) for _ in range(3)]


def gradients(function, tensors):
    out = function(*tensors)
    return [out, *torch.autograd.grad((out.float() * torch.arange(16)).sum(), tensors)]


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_equal_fused_attentions(dtype, tolerance):
    tensors = make(dtype)
    got = gradients(lambda q, k, v: short_attention(q, k, v, 0.3), tensors)
    wanted = gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3), tensors)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype is dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


def test_gradients_equal_finite_differences():
    assert torch.autograd.gradcheck(lambda q, k, v: short_attention(q, k, v, 0.3), [t[:1, :1, :4, :3].detach().requires_grad_()
                                                                                   for t in make(torch.float64)])


def test_only_queries_keys_and_values_are_kept():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        short_attention(*make(torch.bfloat16), 0.3)
    assert kept == [(2, 3, 33, 16)] * 3


@pytest.mark.parametrize('tokens, autocast, calls', [(SHORT, True, 1), (SHORT + 1, True, 0), (SHORT, False, 0)])
def test_it_is_in_force_for_short_sequences_in_two_bytes(monkeypatch, tokens, autocast, calls):
    called = []
    monkeypatch.setattr(layers, 'short_attention', lambda *args: called.append(args) or short_attention(*args))
    attention = Attention(32, 2)
    x = torch.randn(1, tokens, 32)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        out = attention(x)
    assert len(called) == calls
    torch.testing.assert_close(out.float(), attention(x), rtol=2e-2, atol=2e-2)
