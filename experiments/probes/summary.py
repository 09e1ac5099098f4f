"""Rows over seeds: mean, standard deviation, number; and what of them is the best block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.probes.results import Row
from experiments.probes.seeds import OverSeeds


@dataclass(frozen=True)
class Summary(OverSeeds):
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
    def scores(self) -> list[float]:
        """The mIoU of each seed, in per cent."""
        return [row.miou for row in self.rows]


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
