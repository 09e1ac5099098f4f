"""Hooks of pre-training: throughput in the log, revival of dead codes."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

_RSS_UNIT_BYTES = 1 if sys.platform == 'darwin' else 1024


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Adds ``images_per_s`` (all processes) to the log and, without CUDA, ``peak_memory_mib`` of this process.

    On CUDA mmengine logs the memory itself. Time is that of the last iterations, waiting for data included.
    """

    priority = 'NORMAL'  # after IterTimerHook, which default_hooks registers first; before LoggerHook

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Updates both figures."""
        hub = runner.message_hub
        seconds = hub.get_scalar('train/time').current()
        hub.update_scalar('train/images_per_s', len(data_batch['inputs']) * get_world_size() / max(seconds, 1e-9))
        if not torch.cuda.is_available():
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES
            hub.update_scalar('train/peak_memory_mib', peak / 2**20)


@HOOKS.register_module()
class ReviveCodesHook(Hook):
    """Lets the tokenizer move codes that no one uses.

    Args:
        interval: Iterations between revivals; rarer ones give moved codes time to find their place.
        stop_after_iters: No revivals from here on, so that the codebook settles; None never stops.
    """

    priority = 'ABOVE_NORMAL'  # before logging and saving

    def __init__(self, interval: int = 20, stop_after_iters: int | None = None) -> None:
        self.interval = interval
        self.stop_after_iters = stop_after_iters

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Revives codes and logs how many."""
        if self.stop_after_iters is not None and runner.iter >= self.stop_after_iters:
            return
        if self.every_n_train_iters(runner, self.interval):
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            runner.message_hub.update_scalar('train/codes_revived', model.revive_codes())
