"""Chooses a schedule by the number of training images: iterations, warm-up, validation, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from addp_backbone.files.config_text import python_literal
from addp_backbone.runtime.short_schedules import scale_schedulers

PASSES = 100  # over the data set, as ViTDet's over COCO; MAE's 160,000 iterations are 127 passes over ADE20K
MIN_ITERS = 300  # ours: so many steps a head from random weights needs, however small the data set
NUM_VALIDATIONS = 10  # ours

SCHEDULE = """
# One process sees the data {num_passes:.0f} times. On several GPUs, or with another batch: --auto-scale-lr
train_cfg = dict(max_iters={max_iters}, val_interval={interval})
optim_wrapper = dict(optimizer=dict(lr={lr}){paramwise})
param_scheduler = [
{schedulers}
]
auto_scale_lr = dict(base_batch_size={batch_size})
default_hooks = dict(
    checkpoint=dict(interval={interval}{save_best}),{early_stopping}
)
"""
EARLY_STOPPING = """
    early_stopping=dict(type='StopWithoutGain', monitor={metric}, rule='greater', patience={patience}),"""


@dataclass(frozen=True)
class LeafOptions:
    """How a leaf is written.

    Attributes:
        out: Where the config will be.
        base: Config to inherit from.
        validated: Whether there are validation data; without them no checkpoint is called the best.
        patience: Validations without a better result after which training stops; None never stops early.
        protocol: How much of the backbone is trained (:mod:`addp_backbone.datasets.protocols`); None: as in the base.
    """

    out: Path
    base: Path
    validated: bool = True
    patience: int | None = None
    protocol: str | None = None


@dataclass(frozen=True)
class Schedule:
    """The values that a leaf config sets.

    Attributes:
        max_iters: Batches of one process.
        num_passes: How often these go over the data set.
        interval: Iterations between validations, and between checkpoints.
        schedulers: ``param_scheduler``.
        batch_size: Images a batch, which becomes the base batch of ``--auto-scale-lr``.
        lr: Learning rate for that batch: the recipe's, scaled linearly.
    """

    max_iters: int
    num_passes: float
    interval: int
    schedulers: list[dict[str, Any]]
    batch_size: int
    lr: float


def fit_to_images(config: Config, num_images: int) -> Schedule | None:
    """Fits a recipe to a data set, for one process.

    A run sees no more images than the recipe's, and no more than :data:`PASSES` passes over the data set unless that
    is less than :data:`MIN_ITERS` iterations.

    Args:
        config: The recipe.
        num_images: Number of training images.

    Returns:
        The schedule; None if the recipe counts epochs, which fit any data set.
    """
    recipe_iters = config.train_cfg.get('max_iters')
    if not recipe_iters or num_images < 1:
        return None
    batch = config.train_dataloader.batch_size
    base_batch = (config.get('auto_scale_lr') or {}).get('base_batch_size', batch)
    longest = round(recipe_iters * base_batch / batch)  # as many images as in the recipe
    max_iters = min(longest, max(MIN_ITERS, round(PASSES * num_images / batch)))
    schedulers = scale_schedulers(config.param_scheduler, recipe_iters, max_iters)
    return Schedule(
        max_iters=max_iters,
        num_passes=max_iters * batch / num_images,
        interval=max(1, max_iters // NUM_VALIDATIONS),
        schedulers=[dict(scheduler) for scheduler in schedulers],
        batch_size=batch,
        lr=config.optim_wrapper.optimizer.lr * batch / base_batch,
    )


def schedule_text(
    schedule: Schedule | None, options: LeafOptions, metric: str, paramwise: Mapping[str, float] | None = None
) -> str:
    """The part of a leaf config that sets the schedule.

    Args:
        schedule: From :func:`fit_to_images`; None leaves the recipe's.
        options: Whether there are validation data, and when to stop early.
        metric: The figure by which checkpoints are compared; the greater is the better.
        paramwise: Options of ``optim_wrapper.paramwise_cfg`` that differ from the base's.

    Returns:
        Python assignments; empty without a schedule.
    """
    if schedule is None:
        return ''
    save_best = f', save_best={python_literal(metric)}, rule="greater"'.replace('"', "'") if options.validated else ''
    stopping = ''
    if options.patience is not None:
        stopping = EARLY_STOPPING.format(metric=python_literal(metric), patience=options.patience)
    lines = [f'    dict({_arguments(scheduler)}),' for scheduler in schedule.schedulers]
    return SCHEDULE.format(
        num_passes=schedule.num_passes,
        max_iters=schedule.max_iters,
        interval=schedule.interval,
        lr=python_literal(schedule.lr),
        paramwise=f', paramwise_cfg=dict({_arguments(paramwise)})' if paramwise else '',
        schedulers='\n'.join(lines),
        batch_size=schedule.batch_size,
        save_best=save_best,
        early_stopping=stopping,
    )


def _arguments(values: Mapping[str, Any]) -> str:
    return ', '.join(f'{key}={python_literal(value)}' for key, value in values.items())


def schedule_hint(schedule: dict[str, Any], batch_size: int, num_images: int) -> str:
    """Says how often one process passes over the data set by a config's ``train_cfg``."""
    max_iters = schedule.get('max_iters')
    if not max_iters:
        return f'schedule: {schedule.get("max_epochs")} epochs'
    return (
        f'schedule: {max_iters} iterations x {batch_size} images a process = '
        f'{max_iters * batch_size / num_images:.1f} passes over {num_images} images, validated every '
        f'{schedule.get("val_interval")} iterations; for another length --cfg-options train_cfg.max_iters=N'
    )
