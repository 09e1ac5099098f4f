"""Preemption: a signal lets training save at the end of the running iteration, on all processes together, and end.

SIGTERM (preempted and cancelled jobs), SIGUSR1 (Slurm's ``--signal``, ahead of the time limit) and the first SIGINT
(Ctrl-C) count; a second signal ends the process at once. The exit code is :data:`PREEMPTED`, so that a script can tell
a run that has to be resumed from one that failed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from addp_backbone.runtime.seeding import is_accumulating

PREEMPTED = 85  # exit code; no shell, launcher or tool here uses it for anything else
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
MARKER_FILE = 'preempted'  # tells tools/torchrun.py, which hides its processes' exit codes
RUN_FOLDER = 'ADDP_RUN_FOLDER'  # environment variable: that folder
# A terminal and a launcher may both pass one Ctrl-C on: that is one request.
_SAME_REQUEST_SECONDS = 0.5


_SIGNAL, _ERROR = 1, 2  # what processes tell each other; 0 is nothing


class PreemptedError(RuntimeError):
    """Training ended because a signal or a time limit asked for it; the message says what was saved."""

    exit_code = PREEMPTED


class PeerEndedError(RuntimeError):
    """Another process of the run found a reason to end it; its message says which."""


class _Request:
    """What the signal handler and hooks leave for the training loop."""

    def __init__(self) -> None:
        self.active = False
        self.signal: int | None = None
        self.at = 0.0
        self.reason = ''
        self.error: Exception | None = None

    @property
    def code(self) -> int:
        if self.error is not None:
            return _ERROR
        return _SIGNAL if self.signal is not None or self.reason else 0


_request = _Request()


@contextmanager
def catch_signals() -> Iterator[None]:
    """Within, the first of :data:`SIGNALS` is a request to save and end, and the next ends the process.

    Does nothing outside the main thread, where Python cannot set signal handlers.
    """
    if threading.current_thread() is not threading.main_thread() or _request.active:
        yield
        return
    former = {number: signal.signal(number, _take) for number in SIGNALS}
    _request.active, _request.signal, _request.reason, _request.error = True, None, '', None
    try:
        yield
    finally:
        _request.active, _request.signal, _request.reason, _request.error = False, None, '', None
        for number, handler in former.items():
            signal.signal(number, handler)


def request_stop(reason: str) -> None:
    """Lets training save after the running iteration and end as after a signal, on all processes together.

    Args:
        reason: Why, for the message.
    """
    _request.reason = reason


def request_end(error: Exception) -> None:
    """Lets training save after the running iteration and end by ``error``, on all processes together.

    Args:
        error: Raised by :class:`SaveWhenPreempted`, its message followed by what was saved.
    """
    _request.error = error


def _take(number: int, frame: FrameType | None) -> None:
    """The signal handler; it writes by a system call, as Python's streams may be in use."""
    name, now = signal.Signals(number).name, time.monotonic()
    if _request.signal is None:
        _request.signal, _request.at = number, now
        _tell(f'{name}: saving and ending after this iteration; a second signal ends at once\n')
    elif now - _request.at > _SAME_REQUEST_SECONDS:
        _tell(f'{name}: ending at once, nothing is saved\n')
        os._exit(128 + number)


def _tell(text: str) -> None:
    os.write(2, text.encode())


@HOOKS.register_module()
class SaveWhenPreempted(Hook):
    """Saves a checkpoint after the iteration in which a signal came, and ends training by :class:`PreemptedError`.

    The same for an end that a hook asks for (:func:`request_end`), by that hook's error.

    With several processes one that was asked stops all: they agree after each iteration by the maximum of one number
    (on the CPU, by gloo). One process compares a variable. Within a gradient accumulation of several processes, whose
    gradients a checkpoint cannot hold, the next step of the optimizer is waited for. A signal during validation waits
    for its end, as the weights may be averaged ones then.
    """

    priority = 'LOWEST'  # after schedulers have stepped and the checkpoint hook has saved

    def __init__(self) -> None:
        self._group: Any = None
        self._flag = torch.zeros(1)

    def before_train(self, runner: Runner) -> None:
        """Makes the group that agrees, if there are several processes."""
        if get_world_size() > 1 and dist.get_backend() != 'gloo':
            self._group = dist.new_group(backend='gloo')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Saves and ends if a process was asked to.

        Raises:
            PreemptedError: If so, by a signal.
            Exception: If so, by :func:`request_end` on this or another process.
        """
        code = self._asked()
        if not code or (get_world_size() > 1 and is_accumulating(runner)):
            return
        if code == _ERROR:
            error = _request.error or PeerEndedError('another process ends the run; its message says why')
            _request.error = None
            raise type(error)(f'{error}. {save(runner)}')
        reason = _request.reason or 'a signal to another process'
        if _request.signal:
            reason = signal.Signals(_request.signal).name
        _request.reason = ''
        raise PreemptedError(f'{reason}: {save(runner)}')

    def _asked(self) -> int:
        if get_world_size() == 1:
            return _request.code
        self._flag.fill_(_request.code)
        dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group)
        return int(self._flag.item())


def save(runner: Runner) -> str:
    """Saves as the run's checkpoint hook does, unless it just has; returns a sentence about it."""
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return 'ended without saving, as a run that counts epochs resumes at their beginnings: --resume takes the last'
    hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    if hook is None:
        return 'ended without saving, as the config has no checkpoint hook'
    name = hook.filename_tmpl.format(runner.iter + 1)
    if Path(hook.last_ckpt or '').name != name:
        hook._save_checkpoint(runner)
    return f'saved {name} in {runner.work_dir}; --resume goes on from it, with equal results'


def leave_marker() -> bool:
    """Tells tools/torchrun.py, if it started this process, that the run has to be resumed; returns whether it did."""
    folder = os.environ.get(RUN_FOLDER)
    if not folder:
        return False
    (Path(folder) / MARKER_FILE).touch()
    return True
