"""``--auto-scale-lr``: fits learning rate and iteration counts of a config to the global batch it is really run with.

The config says for which batch its values are: ``auto_scale_lr=dict(enable=False, base_batch_size=64, rule='linear')``;
``enable`` and ``base_batch_size`` mean what they mean to mmdet, ``rule`` is 'linear' (default) or 'sqrt'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mmengine.config import Config

from addp_backbone.runtime.config_checks import LaunchError

RULES = ('linear', 'sqrt')


@dataclass(frozen=True)
class Change:
    """One value that :func:`scale_lr` replaced.

    Attributes:
        option: The value's name in the config, as ``--cfg-options`` would name it.
        before: The config's value.
        after: The value that takes its place.
    """

    option: str
    before: Any
    after: Any


@dataclass(frozen=True)
class _Clock:
    """Converts iteration numbers of the config to those of the run.

    The same images are seen in ``ratio`` times the iterations. Warm-up keeps its number of optimizer steps, whatever
    the batch: early instability goes with steps, not with images.
    """

    ratio: Fraction
    accumulation: int
    warmup_iters: int

    def __call__(self, iters: int) -> int:
        """The run's number of an iteration of the config."""
        if iters <= self.warmup_iters:
            return iters * self.accumulation
        return max(1, round(iters * self.ratio / self.accumulation)) * self.accumulation


def scale_lr(cfg: Config, world_size: int) -> list[Change]:
    """Scales learning rates, and for iteration-based training the schedule, to the real global batch.

    Changes ``cfg`` in place. The real batch is
    ``train_dataloader.batch_size * world_size * accumulative_counts``. Learning rates take the ratio
    of real to base batch, or its square root; ``max_iters``, milestones, ends and periods of schedulers, and the
    intervals of validation and checkpoints take the inverse, so that as many images are seen between them. Warm-up
    keeps its number of optimizer steps. Values after scaling are multiples of ``accumulative_counts``. Epoch-based
    schedules need no change. ``auto_scale_lr.enable`` is off afterwards, lest mmengine scales a second time.

    Args:
        cfg: A training config with ``auto_scale_lr``.
        world_size: Number of processes.

    Returns:
        What changed, empty if the batch is the base batch.

    Raises:
        LaunchError: If ``auto_scale_lr`` or its ``base_batch_size`` is absent, the rule is unknown, or no iteration
            would be left after warm-up.
    """
    settings = cfg.get('auto_scale_lr') or {}
    base_batch = settings.get('base_batch_size')
    rule = settings.get('rule', 'linear')
    if not isinstance(base_batch, int) or base_batch < 1:
        raise LaunchError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=N) in the config, N being the batch that its '
            f'learning rate is for; got base_batch_size={base_batch!r}'
        )
    if rule not in RULES:
        raise LaunchError(f'auto_scale_lr.rule is {rule!r}, wanted one of {RULES}')
    settings['enable'] = False
    accumulation = max(wrapper.get('accumulative_counts', 1) for _, wrapper in optim_wrappers(cfg))
    images_per_iter = cfg.train_dataloader.batch_size * world_size
    batch_ratio = Fraction(images_per_iter * accumulation, base_batch)
    factor = float(batch_ratio) if rule == 'linear' else math.sqrt(batch_ratio)
    changes: list[Change] = []
    for option, wrapper in optim_wrappers(cfg):
        if 'lr' in wrapper.optimizer:
            _replace(changes, wrapper.optimizer, 'lr', f'{option}.optimizer', wrapper.optimizer.lr * factor)
    if cfg.train_cfg.get('max_iters') is not None:
        _scale_iterations(cfg, changes, Fraction(base_batch, images_per_iter), accumulation)
    return changes


def describe_changes(changes: list[Change], base_batch: int, real_batch: int) -> str:
    """The table for the log: one line a change."""
    if not changes:
        return f'auto-scale-lr: the global batch is {real_batch}, as in the config; nothing to change'
    width = max(len(change.option) for change in changes)
    rows = [f'  {change.option:{width}}  {_short(change.before)} -> {_short(change.after)}' for change in changes]
    return '\n'.join(
        [f'auto-scale-lr: the config is for a global batch of {base_batch}, this run has {real_batch}:', *rows]
    )


def optim_wrappers(cfg: Config) -> Iterator[tuple[str, Any]]:
    """Yields (option name, optimizer wrapper config): one, or as many as a config with several optimizers has."""
    if 'optimizer' in cfg.optim_wrapper:
        yield 'optim_wrapper', cfg.optim_wrapper
        return
    for name, value in cfg.optim_wrapper.items():
        if isinstance(value, dict) and 'optimizer' in value:
            yield f'optim_wrapper.{name}', value


def _scale_iterations(cfg: Config, changes: list[Change], ratio: Fraction, accumulation: int) -> None:
    schedulers = cfg.get('param_scheduler') or []
    schedulers = list(enumerate(schedulers)) if isinstance(schedulers, list) else [(None, schedulers)]
    by_iter = [(index, scheduler) for index, scheduler in schedulers if not scheduler.get('by_epoch', True)]
    warmup_iters = max((scheduler['end'] for _, scheduler in by_iter if _is_warmup(scheduler)), default=0)
    clock = _Clock(ratio, accumulation, warmup_iters)
    total = clock(cfg.train_cfg.max_iters)
    if total <= clock(warmup_iters):
        raise LaunchError(
            f'--auto-scale-lr would leave {total} of {cfg.train_cfg.max_iters} iterations, no more than the warm-up of '
            f'{clock(warmup_iters)}; take a smaller global batch, or leave the option out and choose lr and max_iters '
            'yourself'
        )
    for index, scheduler in by_iter:
        _scale_scheduler(scheduler, changes, 'param_scheduler' if index is None else f'param_scheduler.{index}', clock)
    for key in ('max_iters', 'val_interval', 'val_begin'):
        if cfg.train_cfg.get(key, 1) > 1:
            _replace(changes, cfg.train_cfg, key, 'train_cfg', _interval(cfg.train_cfg[key], clock))
    if cfg.train_cfg.get('dynamic_intervals'):
        scaled = [
            (_interval(start, clock), _interval(interval, clock)) for start, interval in cfg.train_cfg.dynamic_intervals
        ]
        _replace(changes, cfg.train_cfg, 'dynamic_intervals', 'train_cfg', scaled)
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if not checkpoint.get('by_epoch', True):
        for key in ('interval', 'save_begin'):
            if checkpoint.get(key, 0) > 0:
                _replace(changes, checkpoint, key, 'default_hooks.checkpoint', _interval(checkpoint[key], clock))


def _scale_scheduler(scheduler: Any, changes: list[Change], option: str, clock: _Clock) -> None:
    begin, end = scheduler.get('begin', 0), scheduler.get('end')
    new_begin, new_end = clock(begin), None if end is None else clock(end)
    if scheduler.get('T_max') is not None:
        # The period usually spans begin to end, or is counted from 0 to an end that no other option names.
        spans = end is not None and scheduler['T_max'] == end - begin
        _replace(changes, scheduler, 'T_max', option, new_end - new_begin if spans else clock(scheduler['T_max']))  # type: ignore[operator]
    if scheduler.get('milestones') is not None:
        _replace(changes, scheduler, 'milestones', option, [clock(milestone) for milestone in scheduler['milestones']])
    for key in ('step_size', 'total_steps'):
        if scheduler.get(key) is not None:
            _replace(changes, scheduler, key, option, _interval(scheduler[key], clock))
    if 'begin' in scheduler:
        _replace(changes, scheduler, 'begin', option, new_begin)
    if end is not None:
        _replace(changes, scheduler, 'end', option, new_end)


def _interval(iters: int, clock: _Clock) -> int:
    """Scales a length, which warm-up has no part in."""
    return _Clock(clock.ratio, clock.accumulation, 0)(iters)


def _is_warmup(scheduler: Any) -> bool:
    kind = str(scheduler['type']).rsplit('.', 1)[-1].removesuffix("'>")
    return (
        kind.startswith(('LinearLR', 'ConstantLR', 'LinearParam', 'ConstantParam'))
        and not scheduler.get('begin', 0)
        and (scheduler.get('end') is not None)
    )


def _replace(changes: list[Change], target: Any, key: str, option: str, value: Any) -> None:
    if target[key] != value:
        changes.append(Change(f'{option}.{key}', target[key], value))
        target[key] = value


def _short(value: Any) -> str:
    return f'{value:g}' if isinstance(value, float) else str(value)
