"""Scores of several seeds: mean and standard deviation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def deviation_of(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


class OverSeeds:
    """Rows that differ in the seed alone; sub-classes say what their scores are."""

    @property
    def scores(self) -> list[float]:
        """Of each seed, in per cent."""
        raise NotImplementedError

    @property
    def mean(self) -> float:
        """In per cent."""
        return float(np.mean(self.scores))

    @property
    def deviation(self) -> float:
        """Sample standard deviation; 0 for one seed."""
        return deviation_of(self.scores)

    def __str__(self) -> str:
        """'54.6 ± 0.4', or '54.6' of one seed."""
        return f'{self.mean:.1f}' + (f' ± {self.deviation:.1f}' if len(self.scores) > 1 else '')
