"""Trainings in children of this process, which has imported everything already: a start costs tenths of a second.

The parent must not train itself: autograd's threads do not survive a fork.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from running import load_tool

from addp_backbone.checkpoint.storage import read_checkpoint

# Environment variables with the ends of two pipes: a byte is told at the start of each iteration, and one is taken from
# the other pipe before, where that is given.
TOLD_FD, ALLOWED_FD = 'ADDP_TEST_TOLD_FD', 'ADDP_TEST_ALLOWED_FD'


@HOOKS.register_module(force=True)
class TellProgress(Hook):
    """Waits until the parent process allows the iteration, and tells that it begins."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if ALLOWED_FD in os.environ:
            os.read(int(os.environ[ALLOWED_FD]), 1)
        os.write(int(os.environ[TOLD_FD]), b'.')


class ForkedRun:
    """A function that runs in a child process, with its output in a file.

    Args:
        log: The file.
        work: The function; what it returns is the exit code, and an exception is 70 with its traceback in the file.
        iterations: How many iterations it may begin, with the hook ``TellProgress``; None for any number.
    """

    def __init__(self, log: Path, work: Callable[[], int | None], iterations: int | None = None) -> None:
        self.log = log
        self._told, told = os.pipe()
        allowed, self._allow = os.pipe()
        if iterations is not None:
            os.write(self._allow, b'.' * iterations)
        self.pid = os.fork()
        if not self.pid:
            if iterations is not None:
                os.environ[ALLOWED_FD] = str(allowed)
            self._become(told, work)
        os.close(told)
        os.close(allowed)

    def _become(self, told: int, work: Callable[[], int | None]) -> None:
        code = 70
        try:
            os.setpgid(0, 0)
            os.environ[TOLD_FD] = str(told)
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = (
                os.fdopen(1, 'w', buffering=1),
                os.fdopen(2, 'w', buffering=1),
            )  # pytest has its own
            code = work() or 0
            sys.stdout.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def wait_for_iterations(self, count: int, timeout_s: float = 60.0) -> None:
        """Returns when ``count`` more iterations have begun, or the child has ended."""
        end = time.monotonic() + timeout_s
        while count > 0 and select.select([self._told], [], [], max(0.0, end - time.monotonic()))[0]:
            told = os.read(self._told, count)
            if not told:
                return
            count -= len(told)

    def kill(self) -> bool:
        """Kills the child and what it started; returns whether it was still running."""
        os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self._close()
        return os.WIFSIGNALED(status)

    def wait(self, timeout_s: float = 120.0) -> int:
        """Waits for its end; returns the exit code.

        Raises:
            TimeoutError: If it takes longer.
        """
        end = time.monotonic() + timeout_s
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._close()
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f'no end within {timeout_s} s: {self.output[-2000:]}')
            time.sleep(0.01)

    def _close(self) -> None:
        os.close(self._told)
        os.close(self._allow)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding='utf-8', errors='replace') if self.log.exists() else ''


def start_training(log: Path, config: Path, work_dir: Path, *words: str, iterations: int | None = None) -> ForkedRun:
    """tools/train.py in a child process; ``iterations`` as for :class:`ForkedRun`."""
    command = [str(config), '--work-dir', str(work_dir), *words]
    return ForkedRun(log, lambda: load_tool('train').main(command), iterations)


def final_state(work_dir: Path, num_iters: int) -> dict[str, Any]:
    """The checkpoint of the last iteration."""
    return read_checkpoint(work_dir / f'iter_{num_iters}.pth')


def assert_equal(one: Any, other: Any, where: str = '') -> None:
    """Compares nested values, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f'{where}.{key}')
    elif isinstance(one, list | tuple):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f'{where}.{index}')
    else:
        assert one == other, where
