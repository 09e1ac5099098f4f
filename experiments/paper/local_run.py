"""Runs a plan's stages on this machine, one after the other; started again, it goes on with the first that is not finished."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import indent

from addp_backbone.files.atomic import replace_file
from experiments.paper.plan import FINISHED_FILE, Plan, Stage
from experiments.paper.recipes import REPOSITORY
from experiments.processes import child_process
from experiments.stages import alone, end_of

LOG_FILE = 'log.txt'

Execute = Callable[[Stage, Path, int], int]


def run_in_shell(stage: Stage, log: Path, lock: int) -> int:
    """Runs a stage's command in the repository; its output goes to the log's end.

    Args:
        stage: What to run.
        log: A file.
        lock: File descriptor that the command holds as long as it lives.

    Returns:
        The exit code.
    """
    environment = {**os.environ, 'PYTHON': sys.executable}  # tools/torchrun.sh takes it
    with child_process(stage.command(sys.executable), REPOSITORY, log, lock, environment) as process:
        return process.wait()


def run_plan(plan: Plan, report: Callable[[str], None], execute: Execute = run_in_shell) -> list[Stage]:
    """Runs what is not finished. A stage that fails stops those that need it, and no others. Two runs in one folder wait for each other.

    Args:
        plan: What to run.
        report: Gets lines for people.
        execute: Runs one stage, given its log and a lock to hold; returns 0 if it went well.

    Returns:
        The stages that failed.
    """
    with alone(plan.work_dir) as lock:
        return [
            stage
            for number, stage in enumerate(plan.stages, 1)
            if not _run(stage, f'[{number}/{len(plan.stages)}] {stage.name}', report, execute, lock)
        ]


def _run(stage: Stage, title: str, report: Callable[[str], None], execute: Execute, lock: int) -> bool:
    """Runs one stage if it has to be; returns False if it failed."""
    if stage.finished:
        report(f'{title}: finished before')
        return True
    blocking = [need.name for need in stage.needs if not need.finished]
    if blocking:
        report(f'{title}: left out, as {", ".join(blocking)} failed')
        return True
    log = stage.folder / LOG_FILE
    stage.folder.mkdir(parents=True, exist_ok=True)
    report(f'{title}{describe_cost(stage)}; log: {log}')
    began = time.monotonic()
    code = execute(stage, log, lock)
    seconds = time.monotonic() - began
    if code:
        report(
            f'{title}: FAILED with exit code {code} after {seconds:.0f} s; the end of its log:\n{indent(end_of(log), "    ")}'
        )
        return False
    replace_file(stage.folder / FINISHED_FILE, finished_mark(stage, round(seconds)))
    report(f'{title}: {seconds:.0f} s')
    return True


def finished_mark(stage: Stage, seconds: int | None = None) -> str:
    """What ``finished.json`` says: the command, and the seconds of its last run (a cut training's earlier ones are not in it)."""
    return (
        json.dumps(
            dict(
                command=[f'tools/{stage.tool}.py', *stage.positional, *stage.options],
                processes=stage.num_processes,
                seconds=seconds,
            ),
            ensure_ascii=False,
        )
        + '\n'
    )


def describe_cost(stage: Stage) -> str:
    """', about ... GPU hours' with where that comes from; '' where it is not worth a word."""
    if not stage.cost.gpu_hours:
        return ''
    return f', about {stage.cost.gpu_hours:g} GPU hours ({stage.cost.basis}; not measured)'
