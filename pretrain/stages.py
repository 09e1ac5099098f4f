"""A list of commands, run one after the other: progress and remaining time, resumed where a run was cut.

``tools/quickstart.py`` is the command. A finished stage leaves ``<work_dir>/finished/<name>.json``; it is not repeated as long as its
command stays the same and the files it makes are there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from addp_backbone.files import replace_file
from addp_backbone.orphans import die_with_parent

_POLL_SECONDS = 0.5
_NEW_LINE_SECONDS = 30  # between lines of progress where there is no terminal
_TAIL_LINES = 15
_TAIL_BYTES = 4096
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
    """

    name: str
    seconds: float
    command: tuple[str, ...]
    outputs: tuple[Path, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Identifies the command: a stage whose command changed is run again."""
        return hashlib.sha256(json.dumps(self.command).encode()).hexdigest()


def run_stages(stages: Sequence[Stage], work_dir: Path, root: Path) -> None:
    """Runs the stages that have not finished yet, in order; prints progress and remaining time.

    Args:
        stages: What to run; names must differ.
        work_dir: Gets ``logs/<name>.log`` and ``finished/<name>.json``.
        root: Folder to run the commands in.

    Raises:
        StageError: If a command fails, or leaves out one of its outputs.
    """
    with alone(work_dir) as lock:
        speed = 1.0  # measured seconds by estimated seconds, of what ran so far
        measured = estimated = 0.0
        for i, stage in enumerate(stages):
            label = f'[{i + 1:2}/{len(stages)}] {stage.name:24}'
            if (seconds := finished_seconds(stage, work_dir)) is not None:
                _say(f'{label} finished before, in {seconds:.0f} s')
            else:
                later = speed * sum(s.seconds for s in stages[i + 1:] if finished_seconds(s, work_dir) is None)
                seconds = _run(stage, work_dir, root, lock, label, speed * stage.seconds, later)
            measured, estimated = measured + seconds, estimated + stage.seconds
            speed = (measured + 60) / (estimated + 60)  # cautious while little has run


def finished_seconds(stage: Stage, work_dir: Path) -> float | None:
    """How long the stage took, or None if this command has not finished or an output is missing."""
    mark = work_dir / 'finished' / f'{stage.name}.json'
    if not mark.is_file() or not all(path.exists() for path in stage.outputs):
        return None
    record = json.loads(mark.read_text(encoding='utf-8'))
    return record['seconds'] if record['fingerprint'] == stage.fingerprint else None


def _run(stage: Stage, work_dir: Path, root: Path, lock: int, label: str, expected: float, later: float) -> float:
    log = work_dir / 'logs' / f'{stage.name}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open('ab') as file, child_process([sys.executable, *stage.command], root, file, lock) as process:
        line = _ProgressLine(label)
        while process.poll() is None:
            elapsed = time.monotonic() - started
            done, total = read_counts(log)
            left = elapsed * (total - done) / done if done and total else max(expected - elapsed, 0.0)
            line.show(f'{done}/{total}' if total else '', left, left + later)
            time.sleep(_POLL_SECONDS)
    seconds = time.monotonic() - started
    missing = [str(path) for path in stage.outputs if not path.exists()]
    if process.returncode or missing:
        what = f'exit code {process.returncode}' if process.returncode else f'it wrote no {", ".join(missing)}'
        raise StageError(f'stage {stage.name} failed ({what}); the end of {log}:\n{end_of(log)}')
    replace_file(work_dir / 'finished' / f'{stage.name}.json',
                 json.dumps(dict(fingerprint=stage.fingerprint, seconds=round(seconds, 1))) + '\n')
    line.end(seconds)
    return seconds


class _ProgressLine:
    """One line that is drawn over on a terminal; elsewhere a new line now and then."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.shown = -float('inf')

    def show(self, counts: str, left: float, left_in_all: float) -> None:
        text = f'{self.label} {counts:>12}  {_minutes(left)} left, {_minutes(left_in_all)} in all'
        if sys.stdout.isatty():
            _say(f'\r{text:100}', end='')
        elif time.monotonic() - self.shown > _NEW_LINE_SECONDS:
            _say(text)
            self.shown = time.monotonic()

    def end(self, seconds: float) -> None:
        text = f'{self.label} {"":12}  {seconds:.0f} s'
        _say(f'\r{text:100}' if sys.stdout.isatty() else text)


def _say(text: str, end: str = '\n') -> None:
    sys.stdout.write(text + end)
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
            _say(f'{work_dir} is in use by another run, or by the stage that a killed one left behind: waiting for it')
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


@contextmanager
def child_process(command: Sequence[str], root: Path, log: IO[bytes], lock: int,
                  environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """A process that ends with us where the system can do that, and that never outlives an exception here."""
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                               pass_fds=(lock,), preexec_fn=die_with_parent)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
