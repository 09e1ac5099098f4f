"""Checkpoints that survive a kill at any moment and never hold a diverged model."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.frozen_base import FrozenBase, digest, leave_out_base
from addp_backbone.checkpoint.integrity import sign_archive
from addp_backbone.checkpoint.locate import find_latest_checkpoint
from addp_backbone.files.atomic import remove_abandoned_parts, replace_file
from addp_backbone.runtime.deferred import PendingScalars, is_logged

ATOMIC_BACKEND = 'atomic_local'
_SCALE = 'the scale of the loss'  # beside the losses
MIN_LOSS_SCALE = 1.0  # smaller ones mean that no scale makes the gradients finite


class BadLossError(RuntimeError):
    """The loss or the weights are no longer finite."""


@register_backend(ATOMIC_BACKEND, force=True)
class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files that writes atomically, checkpoints with their digest."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes ``obj``, a checkpoint with its digest, beside ``filepath`` and renames it.

        Raises:
            CheckpointError: If it cannot be written (disk full, folder read-only); the files before are whole.
        """
        try:
            replace_file(filepath, sign_archive(bytes(obj)))
        except OSError as error:
            raise CheckpointError(
                f'{filepath} cannot be written: {error}. Free space or mend the folder and go on with --resume; the '
                'checkpoints written before are whole'
            ) from error


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, atomic: an old file goes only after the new one is there.

    Args:
        save_base: Whether checkpoints hold the frozen part of the backbone that ``model.backbone.init_cfg`` gives.
            None: not with ``norms_only`` or ``lora``. It is always held where it would be lost: without such a file,
            where ``load_from`` brought other weights, and with averaged weights (EMA).
        args: mmengine's arguments.
        options: Likewise.
    """

    backend_args: dict[str, Any] | None

    def __init__(self, *args: Any, save_base: bool | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.save_base = save_base
        self._base: FrozenBase | bool | None = True  # True: nobody has looked yet

    def before_train(self, runner: Runner) -> None:
        """Chooses the atomic backend unless the config names one."""
        if self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend=ATOMIC_BACKEND)
        # mmengine makes FileClients that nobody uses, and warns that FileClient is deprecated.
        runner.logger.addFilter(_is_not_about_file_client)
        super().before_train(runner)
        if is_main_process():
            remove_abandoned_parts(runner.work_dir)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Leaves the frozen base out of the checkpoint, if that is wanted and it can be had again."""
        if self._base is True:
            self._base = self._find_base(runner)
        if isinstance(self._base, FrozenBase) and 'ema_state_dict' not in checkpoint:
            leave_out_base(checkpoint, self._base)

    def _find_base(self, runner: Runner) -> FrozenBase | None:
        """What is left out of every checkpoint of the run; it does not change, as it is frozen."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        base: FrozenBase | None = getattr(runner, 'frozen_base', None)
        selects = getattr(getattr(getattr(model, 'backbone', None), 'tuning', None), 'selects', False)
        if base is None or self.save_base or (self.save_base is None and not selects):
            return None
        own = model.state_dict()
        if digest({name: own[name] for name in base.names}) != base.digest:
            print_log(
                f'the frozen base is not that of {base.source} (load_from brought another): checkpoints hold it',
                logger='current',
                level=logging.WARNING,
            )
            return None
        print_log(
            f'checkpoints leave out {len(base.names)} tensors of the frozen base, {base.source}: keep that file, or '
            'make a checkpoint whole by tools/merge_checkpoint.py (default_hooks.checkpoint.save_base=True keeps them)',
            logger='current',
        )
        return base

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = None
        if self.max_keep_ckpts > 0 and list(self.keep_ckpt_ids)[-1:] != [step]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.keep_ckpt_ids.popleft()
            # The parent leaves the list alone, and removes nothing, where it already ends with this step.
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        super()._save_checkpoint_with_step(runner, step, meta)
        if outdated is not None and is_main_process():
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)


@HOOKS.register_module()
class StopOnBadLoss(Hook):
    """Stops the run when a loss is not finite and never saves such weights, so that the last checkpoint stays good.

    With a loss scale (float16) a loss that is not finite costs one step, which the scaler skips before it halves the
    scale; the run stops only when the scale falls under :data:`MIN_LOSS_SCALE`, also if the losses stay finite
    (gradients that overflow in every step). The log has ``loss_scale`` and the number of ``skipped_steps`` then.

    On a GPU losses are kept there and read every few iterations, as reading makes the CPU wait. The run stops that much
    later, but as if it had looked each time: the iterations are judged one after the other, the first bad one is named
    with its losses, and all are read before a checkpoint, a validation, a line of the log and the end, so that nothing
    is saved or measured after a bad loss.

    Args:
        interval: Iterations between two reads; None: see :class:`addp_backbone.runtime.deferred.PendingScalars`.
    """

    priority = 'VERY_HIGH'  # before anything is saved

    def __init__(self, interval: int | None = None) -> None:
        self.pending = PendingScalars(interval)
        self.last_scale: float | None = None
        self.num_skipped = 0  # since this process started

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Keeps every entry of ``outputs`` whose name holds 'loss', and looks at all that were kept if it is time to.

        Raises:
            BadLossError: With the iteration, the entries, the last checkpoint and what to try.
        """
        losses = {name: value for name, value in (outputs or {}).items() if 'loss' in name}
        scale = _loss_scale(runner)
        self.pending.add(runner.iter, losses if scale is None else {**losses, _SCALE: scale})
        if self.pending.are_due() or is_logged(runner, batch_idx):
            self.look(runner)

    def look(self, runner: Runner) -> None:
        """Judges the iterations that wait for it, in their order.

        Raises:
            BadLossError: See :meth:`after_train_iter`.
        """
        for iteration, values in self.pending.read():
            self._judge(runner, iteration + 1, values.pop(_SCALE, None), values)

    def _judge(self, runner: Runner, number: int, scale: float | None, losses: dict[str, float]) -> None:
        if scale is not None:
            if self.last_scale is not None and scale < self.last_scale:  # the scaler halves it where it skips a step
                self.num_skipped += 1
            self.last_scale = scale
            runner.message_hub.update_scalar('train/skipped_steps', self.num_skipped)
            runner.message_hub.update_scalar('train/loss_scale', scale)
        bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if bad and scale is not None and scale >= MIN_LOSS_SCALE:
            print_log(
                f'at iteration {number} {_list(bad)}: the step is skipped, the loss scale is now {scale:g}',
                logger='current',
                level=logging.WARNING,
            )
        elif scale is not None and scale < MIN_LOSS_SCALE and not bad:
            raise BadLossError(
                f'at iteration {number} the loss scale has fallen to {scale:g}: {self.num_skipped} steps were '
                f'skipped, as float16 gradients were not finite at any scale. {_advice(runner)}'
            )
        elif bad:
            raise BadLossError(f'at iteration {number} {_list(bad)}. {_advice(runner)}')

    def before_val(self, runner: Runner) -> None:
        """Looks, so that no diverged model is measured."""
        self.look(runner)

    def after_train(self, runner: Runner) -> None:
        """Looks at the last iterations."""
        self.look(runner)

    def explain(self, runner: Runner) -> None:
        """Looks after an error: a loss that nobody has looked at yet may be why the model failed.

        Raises:
            BadLossError: If one was bad.
        """
        try:
            self.look(runner)
        except BadLossError:
            raise
        except RuntimeError as error:  # a GPU after a failed kernel, from which nothing can be read
            print_log(f'the last losses cannot be read: {error}', logger='current', level=logging.WARNING)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Looks at the losses, and at the weights: another rank's bad loss reaches this one through the gradients only.

        Raises:
            BadLossError: With the names of the tensors.
        """
        self.look(runner)
        for kind, tensors in (
            ('parameters', dict(runner.model.named_parameters())),
            ('buffers', dict(runner.model.named_buffers())),  # running means see the images of skipped steps too
        ):
            bad = _not_finite(tensors)
            if not bad:
                continue
            raise BadLossError(
                f'at iteration {runner.iter + 1} {len(bad)} {kind} are not finite, among them {", ".join(bad[:3])}; '
                f'the model is not saved. {_advice(runner)}'
            )


def _loss_scale(runner: Runner) -> Tensor | float | None:
    """The scale of the loss in float16, where it lies; None where losses are not scaled."""
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    if scaler is None or not scaler.is_enabled():
        return None
    # Torch's own reader waits for the device; before the first step there is nothing but a number.
    return scaler._scale if scaler._scale is not None else scaler.get_scale()


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with an element that is not finite; one read from each device."""
    finite = {name: torch.isfinite(tensor).all() for name, tensor in tensors.items()}
    scalars = PendingScalars()
    scalars.add(0, finite)
    return [name for _, values in scalars.read() for name, value in values.items() if not value]


def _is_not_about_file_client(record: logging.LogRecord) -> bool:
    return 'FileClient' not in record.getMessage() and 'HardDiskBackend' not in record.getMessage()


def _list(losses: dict[str, float]) -> str:
    return ', '.join(f'{name} is {value}' for name, value in losses.items())


def _advice(runner: Runner) -> str:
    latest = find_latest_checkpoint(runner.work_dir)
    where = (
        f'The last good checkpoint is {latest}; go on from it with --resume after a change'
        if latest
        else 'No checkpoint was saved yet'
    )
    return (
        f'{where}. Try, in this order: a lower learning rate or a longer warm-up (optim_wrapper.optimizer.lr, '
        'param_scheduler), gradient clipping (optim_wrapper.clip_grad.max_norm), bfloat16 instead of float16 '
        '(optim_wrapper.dtype=bfloat16), '
        'and a look at the data (boxes without area, labels out of range)'
    )
