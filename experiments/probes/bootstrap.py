"""Is a difference more than noise? Paired bootstrap over the validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from experiments.probes.scores import mean_iou

RESAMPLES, LEVEL = 2000, 0.95
_CHUNK = 250  # resamples at a time


@dataclass(frozen=True)
class Difference:
    """How much higher one score is than another, in points.

    Attributes:
        value: Of the whole validation set, mean over seeds.
        low: Lower end of the 95 % interval over the images.
        high: Upper end.
        deviation: Sample standard deviation of the differences seed by seed; 0 for one seed.
        num_seeds: How many seeds both have.
    """

    value: float
    low: float
    high: float
    deviation: float
    num_seeds: int

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


class Resampled(Protocol):
    """What is known of each image, so that any draw of images can be scored."""

    def scores(self, counts: NDArray[np.number]) -> NDArray[np.float64]:
        """(draws, images) how often each image was drawn -> (draws,) scores in per cent."""


@dataclass(frozen=True)
class ImageAreas:
    """Areas of each image, which mIoU follows from.

    Attributes:
        areas: (images, 3, C), see :func:`addp_backbone.files.mask_areas.count_areas`.
    """

    areas: NDArray[np.int64]

    def scores(self, counts: NDArray[np.number]) -> NDArray[np.float64]:
        """As :class:`Resampled` says: the mIoU of summed areas."""
        return mean_iou(np.tensordot(counts.astype(np.float64), self.areas.astype(np.float64), axes=1))


def paired_difference(
    first: Sequence[NDArray[np.int64]],
    second: Sequence[NDArray[np.int64]],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Difference:
    """Compares the mIoU of the same images: first minus second, as :func:`difference_of_scores`.

    Args:
        first: Areas of each seed, (images, 3, C), see :func:`addp_backbone.files.mask_areas.count_areas`.
        second: Likewise, of the same seeds and images.
        resamples: Number of draws.
        level: Of the interval.
        seed: Of the draws.

    Returns:
        The difference.

    Raises:
        ValueError: If the two are not of the same seeds, images and classes.
    """
    if [areas.shape for areas in first] != [areas.shape for areas in second] or not first:
        raise ValueError(
            'a paired difference wants areas of the same seeds, images and classes, got '
            f'{[areas.shape for areas in first]} and {[areas.shape for areas in second]}'
        )
    ours, theirs = ([ImageAreas(areas) for areas in one] for one in (first, second))
    return difference_of_scores(ours, theirs, len(first[0]), resamples, level, seed)


def difference_of_scores(
    first: Sequence[Resampled],
    second: Sequence[Resampled],
    num_images: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Difference:
    """Compares two sets of scores of the same images: first minus second.

    The images are drawn anew with replacement, the same for both and for every seed; each draw is scored as a whole
    validation set; the interval is that of the percentiles. What the seeds add is not in the interval but in
    :attr:`Difference.deviation`.

    Args:
        first: Each seed.
        second: The same seeds, of the same images.
        num_images: How many images.
        resamples: Number of draws.
        level: Of the interval.
        seed: Of the draws.

    Returns:
        The difference.
    """
    everything = np.ones((1, num_images))
    by_seed = [(a.scores(everything) - b.scores(everything)).item() for a, b in zip(first, second, strict=True)]
    rng = np.random.default_rng(seed)
    draws = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size)
        draws.append(_mean_scores(counts, first) - _mean_scores(counts, second))
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(np.concatenate(draws), [tail, 100 - tail])
    deviation = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else 0.0
    return Difference(float(np.mean(by_seed)), float(low), float(high), deviation, len(by_seed))


def interval(rows: Sequence[Resampled], num_images: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds: percentiles over draws of the validation images."""
    counts = np.random.default_rng(0).multinomial(num_images, np.full(num_images, 1 / num_images), resamples)
    low, high = np.nanpercentile(_mean_scores(counts, rows), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _mean_scores(counts: NDArray[np.number], rows: Sequence[Resampled]) -> NDArray[np.float64]:
    """Score of every draw, mean over seeds: (draws, images) counts -> (draws,)."""
    return np.mean([row.scores(counts) for row in rows], axis=0)
