"""A training that stops early with the schedule of a whole run, as if it had been killed after a checkpoint."""

from __future__ import annotations

from typing import Any

from mmengine.registry import LOOPS

from pretrain.training.epoch_loop import EpochCountedTrainLoop


@LOOPS.register_module(force=True)
class StoppedTrainLoop(EpochCountedTrainLoop):
    """Ends after ``stop_after_iters`` iterations; the last one is saved like that of a whole run."""

    def __init__(self, *args: Any, stop_after_iters: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._max_iters = min(self._max_iters, stop_after_iters)


def stopped_after(num_iters: int) -> tuple[str, str]:
    """The ``--cfg-options`` that stop a run with ``EpochCountedTrainLoop`` after ``num_iters`` iterations."""
    return 'train_cfg.type=StoppedTrainLoop', f'train_cfg.stop_after_iters={num_iters}'
