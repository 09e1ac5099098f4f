"""Ends of a training before its last iteration: no better result for long, or the time is up."""

from __future__ import annotations

import re
import time
from typing import Any

from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.preemption import request_stop

_DURATION = re.compile(r'(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?')
_KEY = 'early_stopping'  # in the message hub, which checkpoints hold


def parse_duration(text: str) -> int:
    """Reads a duration such as '8h', '1h30m', '45m' or '90s'.

    Returns:
        Seconds, at least 1.

    Raises:
        LaunchError: If it is written otherwise, without a unit for instance, or is nothing.
    """
    found = _DURATION.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise LaunchError(f'{text!r} is no duration, wanted hours, minutes and seconds such as 8h, 1h30m, 45m or 90s')
    return total


@HOOKS.register_module()
class StopAfterTime(Hook):
    """Lets training save and end once a time is up, as after a signal (:mod:`addp_backbone.runtime.preemption`).

    The running iteration is finished first; a validation that is running then ends, and one iteration more.

    Args:
        seconds: How long the process may train.
        began: When it began, on :func:`time.monotonic`'s clock; None = when the hook is made.
    """

    priority = 'LOW'  # before SaveWhenPreempted looks

    def __init__(self, seconds: float, began: float | None = None) -> None:
        self.seconds = seconds
        self.began = time.monotonic() if began is None else began

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Asks for the end if the time is up and iterations are left."""
        if runner.iter + 1 < runner.max_iters and time.monotonic() - self.began >= self.seconds:
            request_stop(f'--max-time: {self.seconds:g} s are over')


@HOOKS.register_module()
class StopWithoutGain(EarlyStoppingHook):
    """mmengine's ``EarlyStoppingHook`` (same arguments), whose count and best score are in the checkpoints.

    A resumed run goes on counting where the checkpoint was written. mmengine's own begins anew.
    """

    def before_train(self, runner: Runner) -> None:
        """Takes up the state of the run that is resumed."""
        state = runner.message_hub.runtime_info.get(_KEY)
        if state is not None:
            self.wait_count, self.best_score = int(state['wait_count']), float(state['best_score'])

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Counts a validation; ends training if too many in a row were no better."""
        super().after_val_epoch(runner, metrics)
        state = dict(wait_count=self.wait_count, best_score=float(self.best_score))
        runner.message_hub.update_info(_KEY, state)
