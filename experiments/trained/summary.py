"""Trainings summed up over seeds, and compared on the same validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from experiments.probes.bootstrap import Difference, difference_of, interval_of
from experiments.probes.seeds import OverSeeds
from experiments.trained.curves import curve_charts
from experiments.trained.protocols import MadeRun, TrainedJob
from experiments.trained.rows import TrainedRow, protocol_differences, read_rows


@dataclass(frozen=True)
class TrainedSummary(OverSeeds):
    """All finished seeds of one protocol, backbone and measure.

    Attributes:
        rows: One for each seed, ascending.
    """

    rows: tuple[TrainedRow, ...]

    @property
    def first(self) -> TrainedRow:
        """Has what all of them share."""
        return self.rows[0]

    @property
    def scores(self) -> list[float]:
        """AP or mIoU of each seed, in per cent."""
        return [row.score for row in self.rows]

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean over draws of the validation images."""
        return interval_of(np.mean([row.draws for row in self.rows], axis=0))

    def record(self) -> dict[str, Any]:
        """The summary as ``results.json`` and ``trained.csv`` have it."""
        low, high = self.interval
        return dict(
            training=self.first.name,
            backbone=self.first.backbone,
            measure=self.first.measure,
            mean=round(self.mean, 4),
            low=round(low, 4),
            high=round(high, 4),
            sd=round(self.deviation, 4),
            seeds=' '.join(str(row.seed) for row in self.rows),
        )


@dataclass(frozen=True)
class TrainedDifference:
    """Two backbones under one protocol, on the seeds that both have.

    Attributes:
        first: Of one.
        second: Of the other.
        difference: First minus second.
    """

    first: TrainedRow
    second: TrainedRow
    difference: Difference

    def record(self) -> dict[str, Any]:
        """The difference as ``results.json`` has it; ``higher`` is None where the two are not told apart."""
        found = self.difference
        higher = self.first if found.value > 0 else self.second
        return dict(
            training=self.first.name,
            measure=self.first.measure,
            first=self.first.backbone,
            second=self.second.backbone,
            **found.record(),
            higher=higher.backbone if found.is_told_apart else None,
        )


def summarise_trained(rows: Sequence[TrainedRow]) -> list[TrainedSummary]:
    """Groups rows that differ in the seed alone, in the order in which they first occur."""
    groups: dict[tuple[str, str, str], list[TrainedRow]] = {}
    for row in rows:
        groups.setdefault((row.name, row.measure, row.backbone), []).append(row)
    return [TrainedSummary(tuple(sorted(group, key=lambda row: row.seed))) for group in groups.values()]


def compare_trained(summaries: Sequence[TrainedSummary], reference: str | None = None) -> list[TrainedDifference]:
    """Compares backbones of one protocol and measure on the seeds that both have.

    Args:
        summaries: From :func:`summarise_trained`.
        reference: The backbone that the others are compared with, as the second; None = all pairs.
    """
    found = []
    for first, second in combinations(summaries, 2):
        names = first.first.backbone, second.first.backbone
        same = (first.first.name, first.first.measure) == (second.first.name, second.first.measure)
        if not same or (reference is not None and reference not in names):
            continue
        if reference == names[0]:
            first, second = second, first
        seeds = sorted({row.seed for row in first.rows} & {row.seed for row in second.rows})
        if not seeds:
            continue
        chosen = [[row for row in one.rows if row.seed in seeds] for one in (first, second)]
        by_seed = [ours.score - theirs.score for ours, theirs in zip(*chosen, strict=True)]
        draws = [np.mean([row.draws for row in rows], axis=0) for rows in chosen]
        difference = difference_of(by_seed, draws[0] - draws[1])
        found.append(TrainedDifference(chosen[0][0], chosen[1][0], difference))
    return found


@dataclass(frozen=True)
class Trained:
    """The trainings of a comparison.

    Attributes:
        summaries: Of what has finished.
        differences: Between backbones.
        unfinished: What has not finished, as 'protocol, backbone, seed'.
        protocols: From :func:`protocol_differences`.
        curves: Charts of scores by iteration, as HTML.
    """

    summaries: tuple[TrainedSummary, ...]
    differences: tuple[TrainedDifference, ...]
    unfinished: tuple[str, ...]
    protocols: Mapping[str, Sequence[str]]
    curves: str

    @staticmethod
    def of(jobs: Sequence[TrainedJob], made: Sequence[MadeRun], reference: str | None) -> Trained:
        """Reads and compares what has finished; arguments as for :func:`read_rows` and :func:`compare_trained`."""
        rows = read_rows(jobs, made)
        summaries = summarise_trained(rows)
        unfinished = [f'{job.name}, {job.backbone}, seed {job.seed}' for job in jobs if not job.test.finished]
        return Trained(
            tuple(summaries),
            tuple(compare_trained(summaries, reference)),
            tuple(unfinished),
            protocol_differences(rows),
            curve_charts(jobs),
        )

    def record(self) -> dict[str, Any] | None:
        """As ``results.json`` has it; None if there are no trainings."""
        if not self.summaries and not self.unfinished:
            return None
        return dict(
            means=[one.record() for one in self.summaries],
            differences=[one.record() for one in self.differences],
            unfinished=list(self.unfinished),
            config_differences={name: list(lines) for name, lines in self.protocols.items()},
        )
