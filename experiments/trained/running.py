"""Runs the trainings of a comparison one after another, and says before about how long they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.engine import run_stages
from experiments.probes.progress import minutes
from experiments.stages import Stage
from experiments.trained.protocols import TRAININGS_FOLDER, TrainedJob


def training_lines(jobs: Sequence[TrainedJob]) -> list[str]:
    """What is planned, what of it has finished, and about how long the rest takes."""
    lines = []
    for job in jobs:
        state = 'finished' if job.test.finished else f'to do, about {minutes(job.seconds)}'
        lines.append(f'{job.name}, {job.backbone}, seed {job.seed}: {state}')
    if lines:
        total = minutes(sum(job.seconds for job in jobs))
        lines.append(f"trainings: about {total} in all on one CPU core (the backbone's arithmetic; heads are guessed)")
    return lines


def run_trainings(jobs: Sequence[TrainedJob], out: Path, report: Callable[[str], None]) -> list[Stage]:
    """Runs what has not finished; one that fails does not stop the others.

    Args:
        jobs: The trainings.
        out: Folder of the comparison.
        report: Gets lines for people.

    Returns:
        The commands that failed.
    """
    stages = [stage for job in jobs for stage in (job.train, job.test)]
    if not stages:
        return []
    return run_stages(stages, out / TRAININGS_FOLDER, Path.cwd(), keep_going=True, report=report)
