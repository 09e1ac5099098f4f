"""Checkpoints that survive a kill at any moment and never hold a diverged model."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.integrity import sign_archive
from addp_backbone.checkpoint.locate import find_latest_checkpoint
from addp_backbone.files.atomic import remove_abandoned_parts, replace_file

ATOMIC_BACKEND = 'atomic_local'
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
    """mmengine's ``CheckpointHook`` (same arguments), atomic: an old file goes only after the new one is there."""

    backend_args: dict[str, Any] | None

    def before_train(self, runner: Runner) -> None:
        """Chooses the atomic backend unless the config names one."""
        if self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend=ATOMIC_BACKEND)
        # mmengine makes FileClients that nobody uses, and warns that FileClient is deprecated.
        runner.logger.addFilter(_is_not_about_file_client)
        super().before_train(runner)
        if is_main_process():
            remove_abandoned_parts(runner.work_dir)

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
    """

    priority = 'VERY_HIGH'  # before anything is saved

    def __init__(self) -> None:
        self.last_scale: float | None = None
        self.num_skipped = 0  # since this process started

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Looks at every entry of ``outputs`` whose name holds 'loss'.

        Raises:
            BadLossError: With the iteration, the entries, the last checkpoint and what to try.
        """
        scale = _loss_scale(runner)
        if scale is not None:
            if self.last_scale is not None and scale < self.last_scale:  # the scaler halves it where it skips a step
                self.num_skipped += 1
            self.last_scale = scale
            runner.message_hub.update_scalar('train/skipped_steps', self.num_skipped)
            runner.message_hub.update_scalar('train/loss_scale', scale)
        losses = {
            name: float(torch.as_tensor(value).detach()) for name, value in (outputs or {}).items() if 'loss' in name
        }
        bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if bad and scale is not None and scale >= MIN_LOSS_SCALE:
            print_log(
                f'at iteration {runner.iter + 1} {_list(bad)}: the step is skipped, the loss scale is now {scale:g}',
                logger='current',
                level=logging.WARNING,
            )
        elif scale is not None and scale < MIN_LOSS_SCALE and not bad:
            raise BadLossError(
                f'at iteration {runner.iter + 1} the loss scale has fallen to {scale:g}: {self.num_skipped} steps were '
                f'skipped, as float16 gradients were not finite at any scale. {_advice(runner)}'
            )
        elif bad:
            raise BadLossError(f'at iteration {runner.iter + 1} {_list(bad)}. {_advice(runner)}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Looks at the weights: another rank's bad loss reaches this one through the gradients only.

        Raises:
            BadLossError: With the names of the tensors.
        """
        for kind, tensors in (
            ('parameters', runner.model.named_parameters()),
            ('buffers', runner.model.named_buffers()),  # running means see the images of skipped steps too
        ):
            bad = [name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())]
            if not bad:
                continue
            raise BadLossError(
                f'at iteration {runner.iter + 1} {len(bad)} {kind} are not finite, among them {", ".join(bad[:3])}; '
                f'the model is not saved. {_advice(runner)}'
            )


def _loss_scale(runner: Runner) -> float | None:
    """The scale of the loss in float16; None where losses are not scaled."""
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    return scaler.get_scale() if scaler is not None and scaler.is_enabled() else None


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
