"""Top-k accuracy: against counting by hand, without duplicates, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pretrain.classification.accuracy import TopKAccuracy


def make_samples(count: int, num_classes: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        dict(
            sample_idx=i,
            gt_label=torch.tensor([int(rng.integers(num_classes))]),
            pred_scores=torch.tensor(rng.random(num_classes)),
        )
        for i in range(count)
    ]


def evaluate(samples: list[dict[str, Any]], size: int | None = None, **options: Any) -> dict[str, float]:
    metric = TopKAccuracy(**options)
    for start in range(0, len(samples), 3):
        metric.process(None, samples[start : start + 3])
    return metric.evaluate(len(samples) if size is None else size)


def test_accuracy_equals_counting_by_hand() -> None:
    samples = make_samples(40, 8)
    found = evaluate(samples)
    for k in (1, 5):
        hits = [
            int(sample['gt_label']) in sorted(range(8), key=lambda c, s=sample: -float(s['pred_scores'][c]))[:k]
            for sample in samples
        ]
        assert found[f'accuracy/top{k}'] == pytest.approx(100 * sum(hits) / 40)


def test_images_that_a_sampler_repeats_count_once() -> None:
    samples = make_samples(7, 8)
    assert evaluate([*samples, samples[0], samples[1]], size=7) == evaluate(samples)


def test_images_that_were_not_classified_are_an_error() -> None:
    with pytest.raises(
        RuntimeError, match=r'6 different images were classified, but the data set has 7.*DefaultSampler'
    ):
        evaluate(make_samples(6, 8), size=7)


def test_a_k_not_below_the_number_of_classes_is_left_out() -> None:
    assert set(evaluate(make_samples(5, 3))) == {'accuracy/top1'}


def test_scores_that_are_no_numbers_are_wrong() -> None:
    samples = make_samples(1, 3)
    samples[0]['pred_scores'] = torch.full((3,), float('nan'))
    assert evaluate(samples)['accuracy/top1'] == 0.0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda sample: sample.pop('gt_label'), 'set labels=True'),
        (lambda sample: sample.update(gt_label=torch.tensor([9])), r'label 9, but the model has 8 classes'),
    ],
)
def test_labels_that_are_missing_or_outside_are_refused(change: Any, message: str) -> None:
    samples = make_samples(2, 8)
    change(samples[1])
    with pytest.raises(ValueError, match=message):
        evaluate(samples)
