"""Counts and remaining time, as lines for people."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from experiments.probes.bench import Job
from experiments.probes.results import Row

_SECONDS_BETWEEN_LINES = 10


class Clock:
    """Tells every finished row and how long the others take, by the mean time of each protocol so far.

    Args:
        todo: Rows that are to be made.
        report: Gets lines.
    """

    def __init__(self, todo: Sequence[Job], report: Callable[[str], None]) -> None:
        self.left = list(todo)
        self.total, self.report = len(todo), report
        self.seconds: dict[str, list[float]] = {}

    def finish(self, job: Job, row: Row) -> None:
        """Takes a row from those that are left, and tells it."""
        self.left.remove(job)
        self.seconds.setdefault(job.protocol, []).append(row.seconds)
        every = [one for values in self.seconds.values() for one in values]
        left = sum(float(np.mean(self.seconds.get(other.protocol, every))) for other in self.left)
        done = self.total - len(self.left)
        self.report(
            f'[{done}/{self.total}] {job}: mIoU {row.miou:.1f} ({row.seconds:.0f} s; about {minutes(left)} left'
            + (
                ' and the features of further backbones'
                if any(one.source is not job.source for one in self.left)
                else ''
            )
            + ')'
        )


class Progress:
    """Lines with counts and remaining time, at most one in some seconds.

    Args:
        what: Is counted.
        report: Gets lines.
    """

    def __init__(self, what: str, report: Callable[[str], None]) -> None:
        self.what, self.report = what, report
        self.started = self.shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Reports ``done`` of ``total``."""
        now = time.monotonic()
        if now - self.shown >= _SECONDS_BETWEEN_LINES:
            self.shown = now
            self.report(f'  {done}/{total} {self.what}, {minutes((now - self.started) * (total - done) / done)} left')


def minutes(seconds: float) -> str:
    """'12:05 min'."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02} min'
