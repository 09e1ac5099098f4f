"""Processes that end with the one that started them.

Those that a killed run leaves behind would keep its memory, files and locks: a data worker waits for ever to hand over
its batch; a process of torchrun goes on training.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
_SECONDS_AFTER_SIGTERM = 60


def die_with_parent() -> None:
    """Asks Linux to kill this process when the thread that started it ends; does nothing on other systems."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def outlive_signals() -> None:
    """Lets a data worker survive the signals that a launcher sends to every process of a run, which still needs it.

    A SIGTERM of the run itself, which ends its workers so, ends the worker at once; one of anybody else ends it a
    minute later, so that a worker that hangs does not outlive the run. Who sent a signal is only told to a thread that
    waits for it.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, 'sigwaitinfo'):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_sigterm, args=(os.getppid(),), daemon=True).start()


def _wait_for_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        signal.alarm(_SECONDS_AFTER_SIGTERM)
    os._exit(0)


class WorkerInit:
    """``worker_init_fn`` of a data loader: ties its workers to this process, then calls the loader's own.

    Args:
        inner: The loader's own, or None.
        outlive_signals: Whether signals that ask a run to save and end leave its workers alone.
    """

    def __init__(self, inner: Callable[[int], None] | None, outlive_signals: bool = True) -> None:
        self.inner = inner
        self.outlive_signals = outlive_signals
        self.parent = os.getpid()

    def __call__(self, worker_id: int) -> None:
        """Runs in the worker."""
        die_with_parent()
        if os.getppid() != self.parent:  # killed before it was asked
            os._exit(1)
        if self.outlive_signals:
            outlive_signals()
        if self.inner is not None:
            self.inner(worker_id)


def process_pool(num_workers: int) -> ProcessPoolExecutor:
    """A pool of processes, forked where that is possible, that end with this one."""
    context = multiprocessing.get_context('fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn')
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=WorkerInit(None, False), initargs=(0,))
