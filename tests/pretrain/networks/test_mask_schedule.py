"""Mask ratios and masks: the published distribution, exact counts, nested masks, randomness by generator only."""

import json
import math
from pathlib import Path

import pytest
import torch

from pretrain.networks.mask_schedule import (
    draw_mask_ratios,
    draw_masks,
    draw_predictor_masks,
    mask_ratio_distribution,
    masks_from_noise,
    num_masked,
    true_indices,
)

GOLDEN = Path(__file__).parents[3] / 'tests' / 'golden'


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_distribution_equals_the_published_ratios_and_probabilities():
    published = json.loads((GOLDEN / 'mask_ratio_distribution.json').read_text())
    ratios, probs = mask_ratio_distribution()
    torch.testing.assert_close(
        ratios, torch.tensor(published['mask_ratios'], dtype=torch.float64), rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(probs, torch.tensor(published['probs'], dtype=torch.float64), rtol=1e-6, atol=1e-8)


def test_the_distribution_is_ascending_within_half_and_one_and_sums_to_one():
    ratios, probs = mask_ratio_distribution()
    assert (ratios.diff() > 0).all() and ratios[0] >= 0.5 and ratios[-1] < 1
    assert math.isclose(probs.sum(), 1)


def test_drawn_ratios_are_one_to_five_steps_apart_or_end_at_the_last_one():
    distribution = mask_ratio_distribution()
    ratios = distribution.ratios.tolist()
    draws = generator()
    strides = set()
    for _ in range(400):
        ratio, noisier = (ratios.index(value) for value in draw_mask_ratios(distribution, draws))
        strides.add(noisier - ratio)
        assert 1 <= noisier - ratio <= 5 or noisier == len(ratios) - 1
    assert strides == set(range(6))


def test_drawn_ratios_follow_the_distribution():
    distribution = mask_ratio_distribution()
    draws = generator()
    drawn = torch.tensor([draw_mask_ratios(distribution, draws)[0] for _ in range(4000)], dtype=torch.float64)
    expected = (distribution.ratios * distribution.probs).sum()
    spread = ((distribution.ratios - expected).square() * distribution.probs).sum().sqrt()
    assert abs(drawn.mean() - expected) < 4 * spread / math.sqrt(4000)


@pytest.mark.parametrize(('ratio', 'count'), [(0.0, 0), (0.5, 128), (0.501, 129), (0.999, 256), (1.0, 256)])
def test_the_number_of_masked_tokens_is_rounded_up(ratio, count):
    assert num_masked(ratio, 256) == count


def test_a_ratio_above_one_is_refused():
    with pytest.raises(ValueError, match=r'must lie in \[0, 1\], got 1\.2'):
        num_masked(1.2, 256)


def test_masks_of_one_noise_are_nested_and_have_exact_counts():
    few, many = masks_from_noise(torch.rand(5, 40, generator=generator()), 11, 29)
    assert few.dtype == torch.bool
    assert few.sum(1).tolist() == [11] * 5 and many.sum(1).tolist() == [29] * 5
    assert (few <= many).all()


def test_counts_are_exact_even_if_all_noise_is_equal():
    (mask,) = masks_from_noise(torch.zeros(3, 10), 4)
    assert mask.sum(1).tolist() == [4, 4, 4]


def test_the_lowest_noise_is_masked_first():
    (mask,) = masks_from_noise(torch.tensor([[0.3, 0.1, 0.9, 0.2]]), 2)
    assert mask.tolist() == [[False, True, False, True]]


def test_masking_more_tokens_than_there_are_refused():
    with pytest.raises(ValueError, match='cannot mask'):
        masks_from_noise(torch.rand(1, 4), 5)


def test_the_masks_of_a_training_step_are_nested_share_one_ratio_and_differ_between_samples():
    distribution = mask_ratio_distribution()
    counts = {num_masked(ratio, 256) for ratio in distribution.ratios.tolist()}
    for seed in range(20):
        mask, noisier_mask = draw_masks(3, 256, generator(seed))
        assert (mask <= noisier_mask).all()
        assert len(set(mask.sum(1).tolist())) == len(set(noisier_mask.sum(1).tolist())) == 1
        assert {int(mask[0].sum()), int(noisier_mask[0].sum())} <= counts
        assert mask.all() or not torch.equal(mask[0], mask[1])


@pytest.mark.parametrize('draw', [draw_masks, draw_predictor_masks])
def test_masks_depend_on_the_generator_and_on_nothing_else(draw):
    first = draw(2, 64, generator(3))
    torch.manual_seed(99)
    again, other = draw(2, 64, generator(3)), draw(2, 64, generator(4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_a_predictors_step_drops_half_of_the_tokens_all_of_them_masked():
    for seed in range(20):
        mask, dropped = draw_predictor_masks(3, 64, generator(seed))
        assert (dropped <= mask).all()
        assert dropped.sum(1).tolist() == [32] * 3
        assert len(set(mask.sum(1).tolist())) == 1


def test_a_predictors_mask_ratio_follows_the_truncated_normal():
    draws = generator()
    ratios = torch.tensor([draw_predictor_masks(1, 1000, draws)[0].float().mean() for _ in range(600)])
    assert ratios.min() >= 0.5 and ratios.max() > 0.95
    # The mean of N(0.55, 0.25) truncated to [0.5, 1] is 0.6936, its standard deviation 0.1286 (scipy.stats.truncnorm).
    assert abs(ratios.mean() - 0.6936) < 4 * 0.1286 / math.sqrt(600)


def test_true_indices_are_listed_in_raster_order():
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    assert true_indices(mask).tolist() == [[0, 2], [2, 3]]


@pytest.mark.parametrize('value', [True, False])
def test_true_indices_of_a_uniform_mask(value):
    assert true_indices(torch.full((2, 3), value)).shape == (2, 3 if value else 0)


def test_rows_with_different_numbers_of_true_entries_are_refused():
    with pytest.raises(ValueError, match=r'rows with \[1, 2\] of 2'):
        true_indices(torch.tensor([[True, True], [True, False]]))
