"""Attention without positions in cache-sized blocks equals torch's fused attention; where it is in force."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from addp_backbone.layers import attention as face
from addp_backbone.layers import cpu_attention as module
from addp_backbone.layers.block import Attention
from addp_backbone.layers.cpu_attention import block_attention

TOKENS = 33


def make(dtype):
    torch.manual_seed(0)
    return [torch.randn(2, 3, TOKENS, 16, dtype=dtype, requires_grad=True) for _ in range(3)]


def gradients(function, tensors):
    out = function(*tensors)
    return [out, *torch.autograd.grad((out.float() * torch.arange(16)).sum(), tensors)]


def attend(q, k, v):
    return block_attention(q, k, v, 0.3)


@pytest.fixture(params=['rows of a head', 'a head', 'four of six heads', 'all heads'])
def set_block(request, monkeypatch):
    """Sets a block's size for a dtype."""

    def set_(dtype):
        numbers = {
            'rows of a head': 5 * TOKENS,
            'a head': TOKENS**2,
            'four of six heads': 4 * TOKENS**2,
            'all heads': 6 * TOKENS**2,
        }
        monkeypatch.setattr(module, '_BLOCK', numbers[request.param] * dtype.itemsize)

    return set_


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_equal_fused_attentions(set_block, dtype, tolerance):
    set_block(dtype)
    tensors = make(dtype)
    got = gradients(attend, tensors)
    wanted = gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3), tensors)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype is dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


def test_gradients_equal_finite_differences():
    assert torch.autograd.gradcheck(attend, [t[:1, :1, :4, :3].detach().requires_grad_() for t in make(torch.float64)])


def test_only_queries_keys_and_values_are_kept():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        attend(*make(torch.bfloat16))
    assert kept == [(2, 3, TOKENS, 16)] * 3


def test_no_tensor_is_larger_than_a_block(set_block):
    set_block(torch.bfloat16)
    tensors = make(torch.bfloat16)
    largest = max(module._BLOCK // 2, tensors[0].numel())
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(tensor.numel() for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor))
            return out

    with Watch():
        gradients(attend, tensors)
    assert max(made) == largest


@pytest.mark.parametrize('tokens', [65, 1200])
@pytest.mark.parametrize('autocast', [True, False])
def test_it_is_in_force_in_16_bits_only(monkeypatch, tokens, autocast):
    called = []
    monkeypatch.setattr(face, 'block_attention', lambda *args: called.append(args) or block_attention(*args))
    attention = Attention(32, 2)
    x = torch.randn(1, tokens, 32)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        out = attention(x)
    assert len(called) == autocast
    torch.testing.assert_close(out.float(), attention(x), rtol=2e-2, atol=2e-2)
