"""Rows over seeds: mean, standard deviation, number; and what of them is the best block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.probes.results import Row


@dataclass(frozen=True)
class Summary:
    """All seeds of one backbone, protocol, block and label fraction.

    Attributes:
        rows: One for each seed.
    """

    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """Has what all of them share."""
        return self.rows[0]

    @property
    def mean(self) -> float:
        """Mean mIoU in per cent."""
        return float(np.mean([row.miou for row in self.rows]))

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the mIoU; 0 for one seed."""
        return float(np.std([row.miou for row in self.rows], ddof=1)) if len(self.rows) > 1 else 0.0

    def __str__(self) -> str:
        """'54.6 ± 0.4', or '54.6' of one seed."""
        return f'{self.mean:.1f}' + (f' ± {self.deviation:.1f}' if len(self.rows) > 1 else '')


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Groups rows that differ in the seed alone, in the order in which they first occur."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.backbone, row.protocol, row.block, row.fraction), []).append(row)
    return [Summary(tuple(group)) for group in groups.values()]


def best_blocks(summaries: Sequence[Summary]) -> list[Summary]:
    """Of every backbone, protocol and label fraction the block with the highest mean, in order of first occurrence."""
    best: dict[tuple[object, ...], Summary] = {}
    for summary in summaries:
        key = summary.first.backbone, summary.first.protocol, summary.first.fraction
        if key not in best or not summary.mean <= best[key].mean:
            best[key] = summary
    return list(best.values())


def mean_lines(summaries: Sequence[Summary]) -> list[str]:
    """Means as lines of text."""
    return [
        f'{one.first.backbone}: {one.first.protocol}, {one.first.fraction:.0%} of the labels: mIoU {one} at block '
        f'{one.first.block}'
        for one in summaries
    ]
