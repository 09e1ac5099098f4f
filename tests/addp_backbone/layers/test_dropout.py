"""Dropout with a mask of random bits: what it zeroes, what it keeps, and its gradient."""

import torch

from addp_backbone.layers.dropout import Dropout, dropout


def test_an_element_is_zero_with_the_probability_asked_for_and_the_others_are_scaled():
    torch.manual_seed(0)
    out = dropout(torch.ones(1000, 1001), 0.1)  # a number of elements that four does not divide
    assert abs(float((out == 0).double().mean()) - 0.1) < 2e-3  # six standard deviations
    torch.testing.assert_close(out[out != 0].unique(), torch.tensor([1 / 0.9]), rtol=1e-4, atol=0)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    dropped = dropout(torch.ones(1_000_000), 0.5) == 0
    for distance in (1, 2, 3, 4):  # four draws share a word
        assert abs(float((dropped[distance:] == dropped[:-distance]).double().mean()) - 0.5) < 4e-3


def test_the_gradient_passes_where_the_element_is_kept():
    x = torch.randn(50, 7, requires_grad=True)
    out = dropout(x, 0.3)
    out.sum().backward()
    torch.testing.assert_close(x.grad * x, out)


def test_draws_follow_torchs_seed():
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(dropout(torch.ones(100), 0.5))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_eval_mode_and_a_probability_of_zero_change_nothing():
    x = torch.randn(3)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x


def test_precision_is_kept():
    assert dropout(torch.ones(8, dtype=torch.bfloat16), 0.5).dtype == torch.bfloat16
