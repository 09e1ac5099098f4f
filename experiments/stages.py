"""A list of commands with what each needs: run side by side, progress and remaining time, resumed where a run was cut.

``tools/quickstart.py`` is the command. A finished stage leaves ``<work_dir>/finished/<name>.json``; it is not repeated
as long as its command stays the same, the files it makes are there, and nothing it needs was run again since.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from addp_backbone.files.atomic import replace_file
from experiments.processes import StageProcess, Start, start_command

_POLL_SECONDS = 0.2
_NEW_LINE_SECONDS = 30  # between lines of progress where there is no terminal
_TAIL_LINES = 15
_TAIL_BYTES = 4096
_LINE_WIDTH = 118
_COUNTS = re.compile(r'(?:\[ *(\d+)/(\d+)\])|(?:\| *(\d+)/(\d+) \[)')  # of mmengine's log lines; of tqdm's bars


class StageError(RuntimeError):
    """A stage failed; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: Short name: of its log file and of the mark that it is finished.
        seconds: About how long it takes, for the remaining time; scaled by how long the stages before it took.
        command: Arguments for Python.
        outputs: Files that are there once it has finished.
        needs: Names of the stages that have to finish first.
    """

    name: str
    seconds: float
    command: tuple[str, ...]
    outputs: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Identifies the command: a stage whose command changed is run again."""
        return hashlib.sha256(json.dumps(self.command).encode()).hexdigest()


def run_stages(
    stages: Sequence[Stage], work_dir: Path, root: Path, lanes: int = 1, start: Start = start_command
) -> None:
    """Runs the stages that have not finished yet; prints progress and remaining time.

    Args:
        stages: What to run; names must differ. Of those whose needs have finished the first in this order starts first.
        work_dir: Gets ``logs/<name>.log`` and ``finished/<name>.json``.
        root: Folder to run the commands in.
        lanes: How many run side by side.
        start: Starts a command.

    Raises:
        StageError: If a command fails, or leaves out one of its outputs; the stages beside it are stopped.
        ValueError: If stages need each other in a circle, or one that there is not.
    """
    _check_order(stages)
    with alone(work_dir) as lock, ExitStack() as processes:
        board = _Board(stages, work_dir, lanes)
        running: list[_Running] = []
        while True:
            ready = [stage for stage in board.pending if all(name in board.finished for name in stage.needs)]
            for stage in ready[: lanes - len(running)]:
                board.pending.remove(stage)
                log = work_dir / 'logs' / f'{stage.name}.log'
                log.parent.mkdir(parents=True, exist_ok=True)
                log.touch()
                running.append(_Running(stage, log, processes.enter_context(start(stage.command, root, log, lock))))
            if not running:
                return
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                board.finish(one.stage, one.close(work_dir))
            board.show(running)
            time.sleep(_POLL_SECONDS)


def _check_order(stages: Sequence[Stage]) -> None:
    """Raises ValueError if a stage needs one that does not stand before it."""
    seen: set[str] = set()
    for stage in stages:
        if missing := [name for name in stage.needs if name not in seen]:
            raise ValueError(f'stage {stage.name} needs {", ".join(missing)}, which must stand before it')
        seen.add(stage.name)


def finished_seconds(stage: Stage, work_dir: Path) -> float | None:
    """How long the stage took, or None if this command has not finished or an output is missing."""
    record = _read_mark(stage, work_dir)
    return record['seconds'] if record else None


def _read_mark(stage: Stage, work_dir: Path) -> dict[str, Any] | None:
    """What the stage left when it finished: ``fingerprint``, ``seconds`` it took, and when (``at``, seconds since 1970).

    None if it has not, or an earlier version left something else.
    """
    mark = work_dir / 'finished' / f'{stage.name}.json'
    if not mark.is_file() or not all(path.exists() for path in stage.outputs):
        return None
    record: dict[str, Any] = json.loads(mark.read_text(encoding='utf-8'))
    return record if record['fingerprint'] == stage.fingerprint and 'at' in record else None


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
        replace_file(
            work_dir / 'finished' / f'{stage.name}.json',
            json.dumps(dict(fingerprint=stage.fingerprint, seconds=round(seconds, 1), at=time.time())) + '\n',
        )
        return seconds


class _Board:
    """What is finished, what is pending, and what people see of it: a line that is drawn over on a terminal, a new one now and then elsewhere."""

    def __init__(self, stages: Sequence[Stage], work_dir: Path, lanes: int) -> None:
        self.count, self.lanes, self.shown = len(stages), lanes, -float('inf')
        self.measured = self.estimated = 0.0
        self.finished: set[str] = set()
        self.pending: list[Stage] = []
        times: dict[str, float] = {}
        for stage in stages:
            record = _read_mark(stage, work_dir)
            if record and all(times.get(name, math.inf) <= record['at'] for name in stage.needs):
                times[stage.name] = record['at']
                self.finish(stage, record['seconds'], 'finished before, in ')
            else:
                self.pending.append(stage)

    @property
    def speed(self) -> float:
        """Measured seconds by estimated seconds, of what ran so far; cautious while little has run."""
        return (self.measured + 60) / (self.estimated + 60)

    def finish(self, stage: Stage, seconds: float, word: str = '') -> None:
        self.finished.add(stage.name)
        self.measured, self.estimated = self.measured + seconds, self.estimated + stage.seconds
        self._say(f'[{len(self.finished):2}/{self.count}] {stage.name:24} {word}{seconds:.0f} s\n')

    def show(self, running: Sequence[_Running]) -> None:
        terminal = sys.stdout.isatty()
        if not running or (not terminal and time.monotonic() - self.shown < _NEW_LINE_SECONDS):
            return
        left = [one.seconds_left(self.speed * one.stage.seconds) for one in running]
        later = self.speed * sum(stage.seconds for stage in self.pending)
        in_all = max([seconds for seconds, _ in left] + [(later + sum(seconds for seconds, _ in left)) / self.lanes])
        now = '; '.join(
            f'{one.stage.name} {counts} {_minutes(seconds)}'
            for one, (seconds, counts) in zip(running, left, strict=True)
        )
        self._say(f'{_minutes(in_all)} left in all; {now}' + ('' if terminal else '\n'))
        self.shown = time.monotonic()

    @staticmethod
    def _say(text: str) -> None:
        sys.stdout.write(f'\r{text[:-1]:{_LINE_WIDTH}}{text[-1]}' if sys.stdout.isatty() else text)
        sys.stdout.flush()


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
