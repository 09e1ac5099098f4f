"""Numbers of an iteration that lie on the GPU, read several iterations at once.

To read a number from a GPU, the CPU waits until everything before it is computed, and the GPU then waits for the CPU.
mmengine reads each loss and the gradients' norm in every iteration. Here they are kept where they are, and read
together, every few iterations and whenever somebody needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

INTERVAL_ITERS = 10  # between two reads on a GPU; elsewhere reading costs nothing and is done in every iteration


class Scalars(NamedTuple):
    """The numbers of one iteration.

    Attributes:
        iteration: Its index in the run, from 0.
        values: By name, in the order in which they came.
    """

    iteration: int
    values: dict[str, float]


class PendingScalars:
    """Numbers that have not been read yet.

    Args:
        interval: Iterations after which they are to be read; None: 1 if no number lies on a GPU, else
            :data:`INTERVAL_ITERS`.
    """

    def __init__(self, interval: int | None = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f'interval must be at least 1, got {interval}')
        self.interval = interval
        self._waiting: list[tuple[int, list[str], list[Tensor]]] = []

    def add(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Keeps the numbers of an iteration: tensors of one element, or what ``torch.as_tensor`` makes one of."""
        tensors = [torch.as_tensor(value).detach() for value in values.values()]
        # A copy: some, as the scale of a loss, are written to in place.
        copies = [tensor.reshape(()).to(torch.float64, copy=True) for tensor in tensors]
        self._waiting.append((iteration, list(values), copies))

    def are_due(self) -> bool:
        """Whether it is time to read."""
        return len(self._waiting) >= (self.interval or self._natural_interval())

    def read(self) -> list[Scalars]:
        """Reads all that is waiting, in the order in which it came; one copy from each device."""
        tensors = [tensor for _, _, group in self._waiting for tensor in group]
        found: dict[int, float] = {}
        for device in {tensor.device for tensor in tensors}:
            chosen = [index for index, tensor in enumerate(tensors) if tensor.device == device]
            numbers = torch.stack([tensors[index] for index in chosen]).tolist()
            found.update(zip(chosen, numbers, strict=True))
        numbers_in_order = (found[index] for index in range(len(tensors)))
        result = [
            Scalars(iteration, {name: next(numbers_in_order) for name in names})
            for iteration, names, _ in self._waiting
        ]
        self._waiting.clear()
        return result

    def _natural_interval(self) -> int:
        on_gpu = any(tensor.device.type != 'cpu' for _, _, group in self._waiting for tensor in group)
        return INTERVAL_ITERS if on_gpu else 1


class KeptNorm:
    """A gradient-clipping function that keeps the norm on its device instead of returning it to be read.

    Args:
        clip: The function, such as ``torch.nn.utils.clip_grad_norm_``.
    """

    def __init__(self, clip: Callable[..., Tensor | None]) -> None:
        self.clip = clip
        self.norm: Tensor | None = None

    def __call__(self, *args: Any, **options: Any) -> None:
        """Clips; mmengine reads a norm that is returned."""
        self.norm = self.clip(*args, **options)

    def take(self) -> Tensor | None:
        """The norm of the last step, None if there was none since it was last taken."""
        norm, self.norm = self.norm, None
        return norm


@HOOKS.register_module()
class DeferredInfoHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook``, which reads losses and the norm of the gradients several iterations at once.

    The log has the same numbers: it is brought up to date before it is written, and before a checkpoint is.

    Args:
        interval: Iterations between two reads; None: see :class:`PendingScalars`.
    """

    def __init__(self, interval: int | None = None) -> None:
        self.pending = PendingScalars(interval)
        self.norms: list[tuple[str, KeptNorm]] = []

    def before_train(self, runner: Runner) -> None:
        """Lets the optimizer wrappers keep the norms."""
        super().before_train(runner)
        self.keep_norms(runner.optim_wrapper)

    def keep_norms(self, wrapper: OptimWrapper | OptimWrapperDict) -> None:
        """Has the norm of clipped gradients kept for the log, not read at once."""
        self.norms = []
        for single in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else (wrapper,):
            if isinstance(single, OptimWrapper) and single.clip_grad_kwargs:
                if not isinstance(single.clip_func, KeptNorm):
                    single.clip_func = KeptNorm(single.clip_func)
                self.norms.append((single.grad_name, single.clip_func))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Keeps the iteration's numbers; reads them if it is time to, or if the log is about to be written."""
        norms = {name: kept.take() for name, kept in self.norms}
        present = {name: norm for name, norm in norms.items() if norm is not None}
        self.pending.add(runner.iter, {**present, **(outputs or {})})
        if self.pending.are_due() or is_logged(runner, batch_idx):
            self.read(runner)

    def before_val(self, runner: Runner) -> None:
        """Brings the log up to date."""
        super().before_val(runner)
        self.read(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Brings the log that is stored in a checkpoint up to date."""
        if self.read(runner):
            checkpoint['message_hub'] = runner.message_hub.state_dict()

    def after_train(self, runner: Runner) -> None:
        """Brings the log up to date."""
        super().after_train(runner)
        self.read(runner)

    def read(self, runner: Runner) -> bool:
        """Gives all that is waiting to the log; returns whether there was anything."""
        scalars = self.pending.read()
        for _, values in scalars:
            for name, value in values.items():
                runner.message_hub.update_scalar(f'train/{name}', value)
        return bool(scalars)


def is_logged(runner: Runner, batch_idx: int) -> bool:
    """Whether mmengine's ``LoggerHook`` writes the log after this iteration."""
    return any(
        hook.every_n_inner_iters(batch_idx, hook.interval) or hook.end_of_epoch(runner.train_dataloader, batch_idx)
        for hook in runner.hooks
        if isinstance(hook, LoggerHook)
    )
