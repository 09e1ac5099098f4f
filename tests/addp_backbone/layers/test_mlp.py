"""The block's MLP equals timm's, values and gradients, and keeps no GELU output."""

import pytest
import torch
from timm.layers import Mlp as TimmMlp
from torch.nn import functional as F

from addp_backbone.layers.mlp import Mlp

WIDTH = 32


def pair(dropout=0.0):
    torch.manual_seed(0)
    ours, peer = Mlp(WIDTH, dropout), TimmMlp(WIDTH, 4 * WIDTH, drop=dropout)
    peer.load_state_dict(ours.state_dict())
    return ours, peer


def run(mlp, x, autocast=False):
    x = x.clone().requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        out = mlp(x)
    out.float().square().mean().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in mlp.parameters())]


@pytest.mark.parametrize('shape', [(2, 5, WIDTH), (7, WIDTH), (2, 3, 4, WIDTH)])
def test_values_and_gradients_equal_timms(shape):
    ours, peer = pair()
    x = torch.randn(shape)
    for got, wanted in zip(run(ours, x), run(peer, x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


def test_they_do_under_autocast_with_float32_gradients_of_the_weights():
    ours, peer = pair()
    x = torch.randn(2, 64, WIDTH)
    results = list(zip(run(ours, x, autocast=True), run(peer, x, autocast=True), strict=True))
    assert results[0][0].dtype is torch.bfloat16
    for got, wanted in results:
        assert got.dtype is wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


def test_gradients_equal_finite_differences():
    ours = Mlp(4).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, (x,))


def test_frozen_weights_get_no_gradient_and_the_input_does():
    ours, peer = pair()
    for mlp in (ours, peer):
        mlp.requires_grad_(False)
    x = torch.randn(2, 5, WIDTH)
    got, wanted = run(ours, x), run(peer, x)
    torch.testing.assert_close(got[1], wanted[1])
    assert got[2:] == [None] * 4


def test_one_tensor_of_the_hidden_width_is_kept_where_timm_keeps_two():
    def count_kept(mlp):
        kept: set[int] = set()

        def pack(tensor):
            if tensor.numel() == 2 * 5 * 4 * WIDTH:
                kept.add(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = mlp(torch.randn(2, 5, WIDTH))
        return len(kept), out  # as long as `out` lives, so does what is kept

    ours, peer = pair()
    assert count_kept(ours)[0] == 1
    assert count_kept(peer)[0] == 2


def test_dropout_falls_on_both_layers():
    ours, _ = pair(0.5)
    out = ours(torch.randn(64, WIDTH))
    assert 0.4 < float((out == 0).float().mean()) < 0.6
    ours.eval()
    x = torch.randn(3, WIDTH)
    torch.testing.assert_close(ours(x), ours.fc2(F.gelu(ours.fc1(x))))
