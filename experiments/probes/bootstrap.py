"""Is a difference more than noise? Paired bootstrap over the validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from experiments.probes.scores import mean_iou
from experiments.probes.seeds import deviation_of

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

    def record(self) -> dict[str, float]:
        """The difference as ``results.json`` has it."""
        return dict(
            difference=round(self.value, 4),
            low=round(self.low, 4),
            high=round(self.high, 4),
            sd_over_seeds=round(self.deviation, 4),
            num_seeds=self.num_seeds,
        )


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
    """Compares the mIoU of the same images: first minus second.

    The images are drawn anew with replacement, the same for both and for every seed; each draw is scored as a whole
    validation set; see :func:`difference_of` for the interval.

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
    by_seed = [float(mean_iou(a.sum(axis=0)) - mean_iou(b.sum(axis=0))) for a, b in zip(first, second, strict=True)]
    ours, theirs = (
        np.mean([bootstrap_scores(ImageAreas(areas), len(areas), resamples, seed) for areas in one], axis=0)
        for one in (first, second)
    )
    return difference_of(by_seed, ours - theirs, level)


def bootstrap_scores(
    result: Resampled, num_images: int, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Scores of draws of the images with replacement; of one seed and number of images the draws are the same.

    Args:
        result: What is scored.
        num_images: How many images.
        resamples: Number of draws.
        seed: Of the draws.

    Returns:
        (resamples,) in per cent.
    """
    rng = np.random.default_rng(seed)
    shares = np.full(num_images, 1 / num_images)
    sizes = [min(_CHUNK, resamples - start) for start in range(0, resamples, _CHUNK)]
    return np.concatenate([result.scores(rng.multinomial(num_images, shares, size)) for size in sizes])


def difference_of(by_seed: Sequence[float], draws: NDArray[np.float64], level: float = LEVEL) -> Difference:
    """A difference from its values.

    What the seeds add is not in the interval but in :attr:`Difference.deviation`.

    Args:
        by_seed: Of the whole validation set, for each seed.
        draws: Of each draw of images, mean over seeds: the interval is that of the percentiles.
        level: Of the interval.
    """
    low, high = interval_of(draws, level)
    return Difference(float(np.mean(by_seed)), low, high, deviation_of(by_seed), len(by_seed))


def interval_of(draws: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """The percentiles of scores of draws that hold ``level`` of them between them."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return float(low), float(high)
