"""Processes that run a stage's command and never outlive the run.

:func:`start_command` starts Python anew. :class:`ToolForks` forks from a process that has imported what every tool
needs once, which saves four seconds of processor time a command.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from addp_backbone.runtime.launch import import_quietly
from addp_backbone.runtime.processes import die_with_parent
from experiments.stages import Stage

_PATIENCE_SECONDS = 10  # of a stopped process
_IMPORTED_BY_ALL = (
    'addp_backbone.runtime.runner',
    'addp_backbone.runtime.optim_wrappers',
    'mmdet.apis',
    'mmseg.apis',
    'pretrain.training',
    'pretrain.classification',
    'addp_backbone.predict',
)


class StageProcess(Protocol):
    """A process that has started."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""


Start = Callable[[Stage, Path, Path, int], AbstractContextManager[StageProcess]]


@contextmanager
def start_command(stage: Stage, root: Path, log: Path, lock: int) -> Iterator[StageProcess]:
    """Starts a stage's command in a fresh Python, or by torchrun if it has several processes.

    Args:
        stage: What to run.
        root: Folder to run it in.
        log: A file; gets its output at the end.
        lock: File descriptor that the process holds as long as it lives.

    Yields:
        The process, which is ended when the context is left, and ends with us where the system can do that.
    """
    with log.open('ab') as file:
        process = subprocess.Popen(
            stage.shell_command(sys.executable),
            cwd=root,
            env={**os.environ, 'PYTHON': sys.executable},  # tools/torchrun.sh takes it
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            pass_fds=(lock,),
            preexec_fn=die_with_parent,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class ToolForks:
    """Starts scripts of ``tools/`` as forks of this process, which imports what they need when the first one starts.

    For Linux: elsewhere a fork of a process that has imported torch may not work.

    Args:
        threads: CPU threads of torch in each.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._context = multiprocessing.get_context('fork')

    @contextmanager
    def __call__(self, stage: Stage, root: Path, log: Path, lock: int) -> Iterator[StageProcess]:
        """Starts a script, as :func:`start_command` does; the lock is inherited."""
        for name in _IMPORTED_BY_ALL:
            import_quietly(name)
        process = self._context.Process(target=_run_script, args=(stage.command, root, log, self.threads))
        process.start()
        try:
            yield _Fork(process)
        finally:
            if process.is_alive():
                process.terminate()
                process.join(_PATIENCE_SECONDS)
                if process.is_alive():
                    process.kill()
                    process.join()


class _Fork:
    """A forked process as a :class:`StageProcess`."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode


def _run_script(command: tuple[str, ...], root: Path, log: Path, threads: int) -> None:
    """What the fork does: a fresh Python's work, but for the imports."""
    import torch

    die_with_parent()
    with log.open('ab') as file, Path(os.devnull).open('rb') as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # For the rest of this process; the parent's may go elsewhere.
    sys.stdout = open(1, 'w', encoding='utf-8', closefd=False)  # noqa: SIM115
    sys.stderr = open(2, 'w', encoding='utf-8', buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(root)
    sys.path.insert(0, str(Path(command[0]).absolute().parent))
    os.environ['OMP_NUM_THREADS'] = str(threads)  # for the programs that it starts
    torch.set_num_threads(threads)
    sys.argv = list(command)
    runpy.run_path(command[0], run_name='__main__')
