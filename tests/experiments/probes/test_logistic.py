"""The closed linear probe: scikit-learn's optimum, for hard and for soft targets."""

import numpy as np
import pytest
import torch

from experiments.probes.logistic import fit_logistic

N, CHANNELS, CLASSES = 240, 6, 3


@pytest.fixture(scope='module')
def sample():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, CHANNELS)) * np.array([1, 5, 0.2, 1, 1, 1]) + 2
    x[:, 3] = x[:, 1] + 0.1 * x[:, 3]  # correlated
    logits = (x - x.mean(0)) / x.std(0) @ rng.normal(size=(CHANNELS, CLASSES))
    y = (logits + 2 * rng.gumbel(size=logits.shape)).argmax(axis=1)
    return x, y


def test_coefficients_are_those_of_scikit_learn(sample):
    linear_model = pytest.importorskip('sklearn.linear_model', reason='scikit-learn is not installed; make setup does')
    x, y = sample
    l2 = 1e-2
    standardised = (x - x.mean(0)) / x.std(0)
    theirs = linear_model.LogisticRegression(C=1 / (l2 * N), tol=1e-10, max_iter=10000).fit(standardised, y)
    ours, converged = fit_logistic(torch.from_numpy(x), torch.eye(CLASSES)[y].double(), l2, tolerance=1e-7)
    assert converged
    np.testing.assert_allclose(ours.weight.numpy() * x.std(0), theirs.coef_, atol=2e-5)
    bias = ours(torch.from_numpy(x.mean(0))).numpy()
    np.testing.assert_allclose(bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-5)


def test_few_patches_that_a_line_divides_are_solved_to_scikit_learns_optimum_with_the_defaults():
    linear_model = pytest.importorskip('sklearn.linear_model', reason='scikit-learn is not installed; make setup does')
    rng = np.random.default_rng(1)
    y = np.arange(150) % 3
    x = (rng.normal(size=(150, 40)) + 2 * np.eye(3)[y] @ rng.normal(size=(3, 40))).astype(np.float32)
    standardised = (x - x.mean(0)) / x.std(0)
    theirs = linear_model.LogisticRegression(C=1 / (1e-5 * 150), tol=1e-9, max_iter=20000).fit(standardised, y)
    ours, converged = fit_logistic(torch.from_numpy(x), torch.eye(3)[y])
    weight = ours.weight.numpy() * x.std(0)
    assert converged and weight.dtype == np.float32
    np.testing.assert_allclose(weight, theirs.coef_, atol=0.03 * np.abs(theirs.coef_).max())


def test_the_gradient_of_the_objective_vanishes_at_the_solution(sample):
    x, y = torch.from_numpy(sample[0]), torch.eye(CLASSES)[sample[1]].double()
    ours, _ = fit_logistic(x, y, 1e-3, tolerance=1e-7)
    std = x.std(0, correction=0)
    weight = (ours.weight * std).requires_grad_()
    logits = (x - x.mean(0)) / std @ weight.T + ours(x.mean(0))
    loss = -(y * logits.log_softmax(1)).sum(1).mean() + 1e-3 / 2 * weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() < 1e-6


def test_a_soft_target_weighs_as_that_many_hard_ones(sample):
    x, y = torch.from_numpy(sample[0]), torch.from_numpy(sample[1])
    soft = 0.75 * torch.eye(CLASSES)[y].double() + 0.25 * torch.eye(CLASSES)[(y + 1) % CLASSES].double()
    hard = torch.eye(CLASSES)[torch.cat((y, y, y, (y + 1) % CLASSES))].double()
    one, _ = fit_logistic(x, soft, tolerance=1e-7)
    four, _ = fit_logistic(x.repeat(4, 1), hard, tolerance=1e-7)
    torch.testing.assert_close(one.weight, four.weight, atol=1e-5, rtol=1e-5)


def test_a_channel_without_variance_gets_no_weight_and_breaks_nothing(sample):
    x, y = torch.from_numpy(sample[0]).clone(), torch.eye(CLASSES)[sample[1]].double()
    x[:, 2] = 7.0
    ours, _ = fit_logistic(x, y)
    assert torch.isfinite(ours.weight).all() and ours.weight[:, 2].abs().max() < 1e-12


def test_it_says_if_it_did_not_converge(sample):
    x, y = torch.from_numpy(sample[0]), torch.eye(CLASSES)[sample[1]].double()
    assert fit_logistic(x, y, max_iters=1, tolerance=1e-9)[1] is False
