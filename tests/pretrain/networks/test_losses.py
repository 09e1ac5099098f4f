"""Losses: label smoothing over the whole vocabulary, only masked tokens, float32 under any precision."""

import pytest
import torch
from torch.nn import functional as F

from pretrain.networks.losses import masked_cross_entropy, masked_mean, masked_soft_cross_entropy


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 13, generator=generator, requires_grad=True)
    target = torch.rand(2, 5, 8, generator=generator)
    mask = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    return logits, target / target.sum(-1, keepdim=True), mask


def test_the_soft_loss_is_cross_entropy_with_the_target_padded_to_the_vocabulary(case):
    logits, target, mask = case
    padded = F.pad(target, (0, 5))
    expected = F.cross_entropy(logits[mask], padded[mask], label_smoothing=0.1)
    torch.testing.assert_close(masked_soft_cross_entropy(logits, target, mask), expected)


def test_a_one_hot_soft_target_gives_the_loss_of_its_token(case):
    logits, _, mask = case
    tokens = torch.arange(10).reshape(2, 5) % 8
    expected = F.cross_entropy(logits[mask], tokens[mask], label_smoothing=0.1)
    torch.testing.assert_close(masked_soft_cross_entropy(logits, F.one_hot(tokens, 8).float(), mask), expected)
    torch.testing.assert_close(masked_cross_entropy(logits, tokens, mask), expected)


def test_unmasked_tokens_get_no_gradient_and_masked_ones_do(case):
    logits, target, mask = case
    masked_soft_cross_entropy(logits, target, mask).backward()
    assert (logits.grad[~mask] == 0).all()
    assert (logits.grad[mask].abs().sum(-1) > 0).all()


def test_the_loss_ignores_values_of_unmasked_tokens_even_infinite_ones(case):
    logits, target, mask = case
    expected = masked_soft_cross_entropy(logits, target, mask)
    changed = logits.detach().clone()
    changed[~mask] = float('inf')
    assert torch.equal(masked_soft_cross_entropy(changed, target, mask), expected)


def test_a_perfect_prediction_without_smoothing_costs_the_targets_entropy(case):
    _, target, mask = case
    logits = torch.cat((target.log(), torch.full((2, 5, 5), -1e4)), -1)
    entropy = torch.special.entr(target).sum(-1)[mask].mean()
    torch.testing.assert_close(masked_soft_cross_entropy(logits, target, mask, label_smoothing=0.0), entropy)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_extreme_logits_in_half_precision_give_a_finite_float32_loss_and_gradient(case, dtype):
    _, target, mask = case
    logits = torch.zeros(2, 5, 13, dtype=dtype)
    logits[..., 0], logits[..., 1] = 6e4, -6e4
    logits.requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        loss = masked_soft_cross_entropy(logits, target.to(dtype), mask)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_the_mean_over_no_place_is_zero():
    assert masked_mean(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool)) == 0


def test_a_mask_of_another_shape_is_refused(case):
    logits, target, _ = case
    with pytest.raises(ValueError, match=r'\(2, 5\), got \(5,\)'):
        masked_soft_cross_entropy(logits, target, torch.ones(5, dtype=torch.bool))


def test_a_target_larger_than_the_vocabulary_is_refused(case):
    logits, target, mask = case
    with pytest.raises(ValueError, match='do not fit'):
        masked_soft_cross_entropy(logits[..., :4], target, mask)
