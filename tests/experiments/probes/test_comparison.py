"""Differences between backbones: the bootstrap's coverage, pairs, the reference, and the block that stands for each."""

import csv
import json

import numpy as np
import pytest

from experiments.probes.bootstrap import paired_difference
from experiments.probes.comparison import NOT_TOLD_APART, choose_blocks, compare, read_rule, write_comparison
from experiments.probes.results import Row
from experiments.probes.scores import mean_iou


def areas_of(rng, images, accuracy):
    """Areas of simulated images with three classes, whose sizes and difficulty vary from image to image."""
    labelled = rng.poisson([400, 100, 40], (images, 3)) + 1
    right = rng.binomial(labelled, np.clip(accuracy + 0.1 * rng.normal(size=(images, 1)), 0.05, 0.95))
    wrong = labelled - right
    predicted = right + np.roll(wrong, 1, axis=1)
    return np.stack([right, predicted, labelled], axis=1)


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    rng = np.random.default_rng(0)
    truth = float(mean_iou(areas_of(rng, 200_000, 0.8).sum(0)) - mean_iou(areas_of(rng, 200_000, 0.77).sum(0)))
    covered = []
    for trial in range(200):
        difference = paired_difference([areas_of(rng, 60, 0.8)], [areas_of(rng, 60, 0.77)], 300, seed=trial)
        covered.append(difference.low <= truth <= difference.high)
    assert 0.90 <= np.mean(covered) <= 0.98


def test_pairing_tells_apart_what_two_separate_intervals_would_not():
    rng = np.random.default_rng(0)
    first = areas_of(rng, 40, 0.8)
    second = first.copy()
    second[:, 0, 2] -= second[:, 0, 2] // 20  # a little worse in every image
    difference = paired_difference([first], [second])
    assert difference.is_told_apart and 0 < difference.low < difference.value < difference.high
    assert not paired_difference([first], [first]).is_told_apart


def test_the_difference_of_seeds_is_their_mean_with_its_spread():
    rng = np.random.default_rng(0)
    first, second = ([areas_of(rng, 20, accuracy) for _ in range(3)] for accuracy in (0.8, 0.6))
    by_seed = [float(mean_iou(a.sum(0)) - mean_iou(b.sum(0))) for a, b in zip(first, second, strict=True)]
    difference = paired_difference(first, second)
    assert difference.value == pytest.approx(np.mean(by_seed))
    assert difference.deviation == pytest.approx(np.std(by_seed, ddof=1)) and difference.num_seeds == 3


def test_other_images_cannot_be_paired():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match='same seeds, images and classes'):
        paired_difference([areas_of(rng, 20, 0.8)], [areas_of(rng, 19, 0.8)])


@pytest.fixture(scope='module')
def rows():
    rng = np.random.default_rng(0)
    scores = {('a', 1): 0.5, ('a', 2): 0.8, ('a', 3): 0.6, ('b', 1): 0.79, ('b', 3): 0.3, ('c', 1): 0.2, ('c', 3): 0.3}
    return [
        Row(name, 'knn', block, 1.0, seed, 9, 1.0, '', areas_of(rng, 30, score))
        for (name, block), score in scores.items()
        for seed in (0, 1)
    ]


def test_the_block_that_stands_for_a_backbone_is_the_best_the_last_or_a_number(rows):
    def chosen(rule):
        return {one.first.backbone: one.first.block for one in choose_blocks(rows, rule)}

    assert chosen('best') == {'a': 2, 'b': 1, 'c': 3}
    assert chosen('last') == {'a': 3, 'b': 3, 'c': 3}
    assert chosen(1) == {'a': 1, 'b': 1, 'c': 1}
    with pytest.raises(ValueError, match='block 2 of b, c was not probed'):
        chosen(2)
    with pytest.raises(ValueError, match="got 'first'"):
        read_rule('first')


def test_all_pairs_are_compared_or_each_with_the_reference(rows, tmp_path):
    chosen = choose_blocks(rows, 'best')
    compared = compare(chosen)
    verdicts = {(one.first.first.backbone, one.second.first.backbone): one.verdict for one in compared}
    assert verdicts == {('a', 'b'): NOT_TOLD_APART, ('a', 'c'): 'a', ('b', 'c'): 'b'}
    with_reference = compare(chosen, 'a')
    assert [(one.first.first.backbone, one.second.first.backbone) for one in with_reference] == [('b', 'a'), ('c', 'a')]
    assert with_reference[1].difference.value < 0
    write_comparison(tmp_path, rows, compared, chosen, {})
    results = json.loads((tmp_path / 'results.json').read_text(encoding='utf-8'))
    assert [one['higher'] for one in results['differences']] == [NOT_TOLD_APART, 'a', 'b']
    table = list(csv.DictReader((tmp_path / 'results.csv').open(encoding='utf-8')))
    assert [(row['backbone'], row['num_seeds']) for row in table] == [('a', '2'), ('b', '2'), ('c', '2')]
