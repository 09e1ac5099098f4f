"""Runs stages on this machine: side by side, with progress and remaining time, and resumed where a run was cut."""

from __future__ import annotations

import fcntl
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from textwrap import indent
from typing import Any

from addp_backbone.files.atomic import replace_file
from experiments.processes import StageProcess, Start, start_command
from experiments.stages import REPOSITORY, Stage, StageError

_POLL_SECONDS = 0.2
_NEW_LINE_SECONDS = 30  # between lines of progress where there is no terminal
_TAIL_LINES = 15
_TAIL_BYTES = 4096
_LINE_WIDTH = 118
_COUNTS = re.compile(r'(?:\[ *(\d+)/(\d+)\])|(?:\| *(\d+)/(\d+) \[)')  # of mmengine's log lines; of tqdm's bars


def run_stages(
    stages: Sequence[Stage],
    work_dir: Path,
    root: Path = REPOSITORY,
    lanes: int = 1,
    start: Start = start_command,
    keep_going: bool = False,
    report: Callable[[str], None] | None = None,
) -> list[Stage]:
    """Runs the stages that have not finished yet; reports progress and remaining time.

    A stage that has finished is not repeated as long as its command stays the same and the files that it makes exist;
    one that writes to fixed paths is also repeated after a stage that it needs was. Two runs in one work dir wait for
    each other, and a killed run takes its commands with it.

    Args:
        stages: What to run. Of those whose needs have finished the first in this order starts first.
        work_dir: Gets the logs and marks of stages that have no folder of their own.
        root: Folder to run the commands in.
        lanes: How many run side by side.
        start: Starts a stage.
        keep_going: Whether a stage that fails stops only those that need it; otherwise it ends the run.
        report: Gets lines for people; None prints them, and draws one line of progress over another on a terminal.

    Returns:
        The stages that failed, none without ``keep_going``.

    Raises:
        StageError: If a command fails, or leaves out one of its outputs, and ``keep_going`` is off; the stages beside
            it are stopped.
        ValueError: If a stage needs one that does not stand before it.
    """
    _check_order(stages)
    failed: list[Stage] = []
    with alone(work_dir) as lock, ExitStack() as processes:
        board = _Board(stages, work_dir, lanes, report)
        running: list[_Running] = []
        while True:
            for stage in board.ready()[: lanes - len(running)]:
                board.begin(stage)
                log = stage.log_file(work_dir)
                log.parent.mkdir(parents=True, exist_ok=True)
                log.touch()
                running.append(_Running(stage, log, processes.enter_context(start(stage, root, log, lock))))
            if not running:
                return failed
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                try:
                    board.finish(one.stage, one.close(work_dir))
                except StageError as error:
                    if not keep_going:
                        raise
                    failed.append(one.stage)
                    board.fail(one.stage, error)
            board.show(running)
            if running and all(one.process.poll() is None for one in running):
                time.sleep(_POLL_SECONDS)


def dry_run(stages: Sequence[Stage], work_dir: Path) -> list[str]:
    """Lines with every command, and whether it has finished."""
    lines = []
    for number, stage in enumerate(stages, 1):
        state = ', finished' if stage.read_mark(work_dir) is not None else stage.cost
        lines += [f'\n# [{number}/{len(stages)}] {stage.name}{state}', shlex.join(stage.shell_command(sys.executable))]
    return lines


def _check_order(stages: Sequence[Stage]) -> None:
    """Raises ValueError if a stage needs one that does not stand before it."""
    seen: set[Stage] = set()
    for stage in stages:
        if missing := [need.name for need in stage.needs if need not in seen]:
            raise ValueError(f'stage {stage.name} needs {", ".join(missing)}, which must stand before it')
        seen.add(stage)


class _Running:
    """A stage that has started."""

    def __init__(self, stage: Stage, log: Path, process: StageProcess) -> None:
        self.stage, self.log, self.process = stage, log, process
        self.started = time.monotonic()

    def seconds_left(self, expected: float) -> tuple[float, str]:
        """How long it still takes, and how far it is."""
        elapsed = time.monotonic() - self.started
        done, total = read_counts(self.log)
        left = elapsed * (total - done) / done if done and total else max(expected - elapsed, 0.0)
        return left, f'{done}/{total}' if total else ''

    def close(self, work_dir: Path) -> float:
        """Marks it as finished; returns how long it took."""
        seconds, stage = time.monotonic() - self.started, self.stage
        missing = [str(path) for path in stage.outputs if not path.exists()]
        if (code := self.process.poll()) or missing:
            what = f'exit code {code}' if code else f'it wrote no {", ".join(missing)}'
            raise StageError(f'stage {stage.name} failed ({what}); the end of {self.log}:\n{end_of(self.log)}')
        replace_file(stage.mark_file(work_dir), stage.mark(round(seconds, 1), time.time()))
        return seconds


class _Board:
    """What is finished, pending and left out, and what people see of it."""

    def __init__(
        self, stages: Sequence[Stage], work_dir: Path, lanes: int, report: Callable[[str], None] | None
    ) -> None:
        self.count, self.lanes, self.report, self.shown = len(stages), lanes, report, -float('inf')
        self.measured = self.estimated = 0.0
        self.finished: set[Stage] = set()
        self.failed: set[Stage] = set()  # or left out as one that it needs failed
        self.pending: list[Stage] = []
        times: dict[Stage, float] = {}
        for stage in stages:
            record = stage.read_mark(work_dir)
            if record is not None and (stage.folder or _is_fresh(record, stage, times)):
                times[stage] = record.get('at') or 0.0
                self.finish(stage, record.get('seconds'), 'finished before')
            else:
                self.pending.append(stage)

    def ready(self) -> list[Stage]:
        """Pending stages that can start; those that need a failed one are left out and said so."""
        for stage in list(self.pending):  # each after those that it needs
            if blocking := [need.name for need in stage.needs if need in self.failed]:
                self.pending.remove(stage)
                self.failed.add(stage)
                self._say(f'{stage.name}: left out, as {", ".join(blocking)} failed')
        return [stage for stage in self.pending if self.finished.issuperset(stage.needs)]

    @property
    def speed(self) -> float:
        """Measured seconds by estimated seconds, of what ran so far; cautious while little has run."""
        return (self.measured + 60) / (self.estimated + 60)

    def begin(self, stage: Stage) -> None:
        """Takes a stage from the pending ones; a folder of its own is told, as its name cannot be guessed."""
        self.pending.remove(stage)
        if stage.folder:
            self._say(f'{stage.name}{stage.cost}; log: {stage.log_file(stage.folder)}')

    def finish(self, stage: Stage, seconds: float | None, word: str = '') -> None:
        self.finished.add(stage)
        if seconds is not None:
            word += f'{", in " if word else ""}{seconds:.0f} s'
            self.measured, self.estimated = self.measured + seconds, self.estimated + stage.seconds
        self._say(f'[{len(self.finished):2}/{self.count}] {stage.name:24} {word}')

    def fail(self, stage: Stage, error: StageError) -> None:
        self.failed.add(stage)
        self._say(indent(str(error), '    ').lstrip())

    def show(self, running: Sequence[_Running]) -> None:
        drawn_over = self.report is None and sys.stdout.isatty()
        if not running or (not drawn_over and time.monotonic() - self.shown < _NEW_LINE_SECONDS):
            return
        left = [one.seconds_left(self.speed * one.stage.seconds) for one in running]
        later = self.speed * sum(stage.seconds for stage in self.pending)
        in_all = max([seconds for seconds, _ in left] + [(later + sum(seconds for seconds, _ in left)) / self.lanes])
        now = '; '.join(
            f'{one.stage.name} {counts} {_minutes(seconds)}'
            for one, (seconds, counts) in zip(running, left, strict=True)
        )
        self._say(f'{_minutes(in_all)} left in all; {now}', '' if drawn_over else '\n')
        self.shown = time.monotonic()

    def _say(self, line: str, end: str = '\n') -> None:
        if self.report:
            self.report(line)
            return
        sys.stdout.write(f'\r{line:{_LINE_WIDTH}}{end}' if sys.stdout.isatty() else line + end)
        sys.stdout.flush()


def _is_fresh(record: dict[str, Any], stage: Stage, times: dict[Stage, float]) -> bool:
    """Whether everything that a stage at fixed paths needs is finished, and finished before it did."""
    return all(times.get(need, math.inf) <= record['at'] for need in stage.needs)


def _minutes(seconds: float) -> str:
    return f'{int(seconds) // 60}:{int(seconds) % 60:02} min'


def read_counts(log: Path) -> tuple[int, int]:
    """The last ``12/34`` of a log, (0, 0) if there is none."""
    with log.open('rb') as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        found = _COUNTS.findall(file.read().decode('utf-8', errors='replace'))
    return tuple(int(number) for number in found[-1] if number)[:2] if found else (0, 0)  # type: ignore[return-value]


def end_of(log: Path) -> str:
    """The last lines of a log, for an error."""
    return '\n'.join(log.read_text(encoding='utf-8', errors='replace').splitlines()[-_TAIL_LINES:])


@contextmanager
def alone(work_dir: Path) -> Iterator[int]:
    """Holds the work dir for this process and for those that get the lock's file descriptor."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / '.lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stdout.write(
                f'{work_dir} is in use by another run, or by the stage that a killed one left behind: waiting for it\n'
            )
            sys.stdout.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
