"""Training counted in iterations, with a length in epochs: recipes count epochs, resume and logs count iterations."""

from __future__ import annotations

from typing import Any

from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader


@LOOPS.register_module()
class EpochCountedTrainLoop(IterBasedTrainLoop):
    """``IterBasedTrainLoop`` of ``max_epochs`` passes over the data set, for any global batch size.

    An epoch is ``ceil(images / (batch_size * processes))`` iterations. Schedulers that say ``by_epoch=True`` and
    ``convert_to_iter_based=True`` end with the last epoch unless they name another end. Gradient accumulation changes
    neither: iterations and schedulers both count batches.

    Args:
        runner: mmengine's runner.
        dataloader: The data loader or its config.
        max_epochs: Number of epochs, at least 1.
        val_begin: Iteration after which the first validation may take place.
        val_interval: Number of iterations between validations.

    Raises:
        ValueError: If ``max_epochs`` is less than 1.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict[str, Any],
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int = 1000,
    ) -> None:
        super().__init__(runner, dataloader, max_iters=1, val_begin=val_begin, val_interval=val_interval)
        if max_epochs < 1:
            raise ValueError(f'max_epochs must be at least 1, got {max_epochs}')
        self._max_epochs = max_epochs
        self._max_iters = max_epochs * len(self.dataloader)
