"""Refuses values that cannot work, before data sets and models are built: schedules, loaders, sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from addp_backbone.networks.arch import get_arch
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.scale_lr import optim_wrappers
from addp_backbone.tuning.partial import Tuning

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
LOOPS_BY_EPOCH = {'EpochBasedTrainLoop': True, 'IterBasedTrainLoop': False}
NEED_WORKERS = ('persistent_workers', 'prefetch_factor')
BACKBONES = ('ADDPViT', 'ADDPSegViT', 'ClassifierViT')  # whose arch is one of networks/arch.py
TUNABLE_BACKBONES = (*BACKBONES, 'TimmViT')  # of which a part may be trained
PRETRAININGS = ('ADDPPretraining', 'TokenPredictorTraining')  # the same, in dicts without type


def check_values(cfg: Config) -> None:
    """Refuses values that could only end in an error later, or that would silently do nothing.

    Args:
        cfg: A config, before a shortened schedule is fitted.

    Raises:
        LaunchError: With the option, its value, and what to set instead.
    """
    _check_loop(cfg.get('train_cfg') or {})
    for name in LOADERS:
        if isinstance(cfg.get(name), Mapping):
            _check_loader(cfg[name], name)
    for option, wrapper in optim_wrappers(cfg) if cfg.get('optim_wrapper') else []:
        _check_lr(wrapper, option)
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None and not _is_count(seed, 0):
        raise LaunchError(f'randomness.seed is {seed!r}, wanted a whole number from 0 on')
    schedulers = cfg.get('param_scheduler')
    if isinstance(schedulers, list):
        for index, scheduler in enumerate(schedulers):
            _check_scheduler(scheduler, f'param_scheduler.{index}', _counts_epochs(cfg.get('train_cfg') or {}))
    model = cfg.get('model') or {}
    for path, node in _dicts(model, 'model'):
        _check_num_classes(path, node)
        pretraining = 'type' not in node and model.get('type') in PRETRAININGS
        if _type_name(node) in TUNABLE_BACKBONES:
            _check_tuning(path, node)
        if 'arch' in node and (pretraining or _type_name(node) in BACKBONES):
            _check_arch(path, node['arch'])


def _check_loop(loop: Mapping[str, Any]) -> None:
    """The training loop counts either epochs or iterations, and all its counts are whole numbers."""
    epochs = _counts_epochs(loop)
    if epochs is not None:
        used, other = ('max_epochs', 'max_iters') if epochs else ('max_iters', 'max_epochs')
        unit = 'epochs' if epochs else 'iterations'
        if other in loop:
            raise LaunchError(
                f'train_cfg.{other}={loop[other]!r}: the training loop of this config counts {unit}; set '
                f'train_cfg.{used} instead'
            )
        if loop.get(used) is None:
            raise LaunchError(f'train_cfg needs {used}, as its training loop counts {unit}')
    for name in ('max_iters', 'max_epochs', 'val_interval', 'val_begin'):
        if name in loop and not _is_count(loop[name], 0 if name == 'val_begin' else 1):
            raise LaunchError(f'train_cfg.{name} is {loop[name]!r}, wanted a whole number from 1 on')


def _counts_epochs(loop: Mapping[str, Any]) -> bool | None:
    """Whether a ``train_cfg`` counts epochs; None for a loop of another type, or none."""
    if not loop:
        return None
    if loop.get('type') is None:
        return bool(loop.get('by_epoch', True))
    return LOOPS_BY_EPOCH.get(_type_name(loop))


def _check_loader(loader: Mapping[str, Any], name: str) -> None:
    batch_size, num_workers = loader.get('batch_size', 1), loader.get('num_workers', 0)
    if batch_size is not None and not _is_count(batch_size, 1):
        raise LaunchError(f'{name}.batch_size is {batch_size!r}, wanted a whole number from 1 on')
    if not _is_count(num_workers, 0):
        raise LaunchError(f'{name}.num_workers is {num_workers!r}, wanted a whole number from 0 on')
    for option in NEED_WORKERS:
        if num_workers == 0 and loader.get(option):
            off = False if option == 'persistent_workers' else None
            raise LaunchError(
                f'{name}.{option}={loader[option]} needs workers, but {name}.num_workers is 0: add '
                f'{name}.{option}={off}'
            )


def _check_lr(wrapper: Mapping[str, Any], option: str) -> None:
    optimizer = wrapper.get('optimizer') or {}
    lr = optimizer.get('lr') if isinstance(optimizer, Mapping) else None
    if lr is not None and not (_is_number(lr) and math.isfinite(lr) and lr >= 0):
        raise LaunchError(f'{option}.optimizer.lr is {lr!r}, wanted a number')
    count = wrapper.get('accumulative_counts', 1)
    if not _is_count(count, 1):
        raise LaunchError(f'{option}.accumulative_counts is {count!r}, wanted a whole number from 1 on')


def _check_scheduler(scheduler: Mapping[str, Any], path: str, epochs: bool | None) -> None:
    begin, end = scheduler.get('begin', 0), scheduler.get('end')
    for name, value in (('begin', begin), ('end', end)):
        if value is not None and not (_is_number(value) and value >= 0):
            raise LaunchError(f'{path}.{name} is {value!r}, wanted a whole number from 0 on')
    if end is not None and end <= begin:
        raise LaunchError(
            f'{path} ({scheduler.get("type")}) begins at {begin} and ends at {end}: set {path}.end beyond {begin}, or '
            f'{path}.begin before {end}'
        )
    if epochs is False and scheduler.get('by_epoch', True):
        raise LaunchError(
            f'{path} ({scheduler.get("type")}) counts epochs, but the training loop counts iterations, so that it '
            f'would never act: set {path}.by_epoch=False, and its begin and end in iterations'
        )


def _check_num_classes(path: str, node: Mapping[str, Any]) -> None:
    count = node.get('num_classes')
    if isinstance(count, int | float) and not _is_count(count, 1):
        raise LaunchError(f'{path}.num_classes is {count!r}, wanted a whole number from 1 on')


def _check_arch(path: str, arch: Any) -> None:
    try:
        get_arch(arch)
    except (ValueError, TypeError) as error:
        raise LaunchError(f'{path}.arch: {error}') from error


def _check_tuning(path: str, node: Mapping[str, Any]) -> None:
    try:
        Tuning.from_options(node.get('frozen', False), node.get('norms_only', False), node.get('lora'))
    except ValueError as error:
        raise LaunchError(f'{path}: {error}') from error


def _type_name(node: Mapping[str, Any]) -> str:
    """A dict's type without scope and path."""
    return str(node.get('type', '')).rpartition('.')[2]


def _dicts(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dict within dicts and lists, with its option name."""
    if isinstance(node, Mapping):
        yield path, node
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, child in children:
        yield from _dicts(child, f'{path}.{key}')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
