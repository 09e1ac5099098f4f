"""Training counted in iterations, with a length given in epochs (recipes are in epochs, resume and logs in iterations)."""

from __future__ import annotations

from typing import Any

from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader


@LOOPS.register_module()
class EpochCountedTrainLoop(IterBasedTrainLoop):
    """``IterBasedTrainLoop`` of ``max_epochs`` passes over the data set, whatever the global batch.

    An epoch is ``ceil(images / (batch_size * processes))`` iterations. Schedulers that say ``by_epoch=True`` and
    ``convert_to_iter_based=True`` end, if they name no end, with the last epoch. Gradient accumulation changes neither:
    iterations count batches, and so do the schedulers.

    Args:
        runner: mmengine's.
        dataloader: The data loader or its config.
        max_epochs: Number of epochs.
        stop_after_iters: Ends the run early without changing the schedule, to measure speed or to split a run into
            jobs.
        val_begin: First iteration after which to validate.
        val_interval: Iterations between validations.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict[str, Any],
        max_epochs: int,
        stop_after_iters: int | None = None,
        val_begin: int = 1,
        val_interval: int = 1000,
    ) -> None:
        super().__init__(runner, dataloader, max_iters=1, val_begin=val_begin, val_interval=val_interval)
        if max_epochs < 1:
            raise ValueError(f'max_epochs must be at least 1, got {max_epochs}')
        self._max_epochs = max_epochs
        self._max_iters = max_epochs * len(self.dataloader)
        if stop_after_iters is not None:
            self._max_iters = min(self._max_iters, stop_after_iters)
