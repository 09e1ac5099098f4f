"""From a command line to mmengine's Runner, the same for every stage and for training and testing.

``tools/train.py`` and ``tools/test.py`` call, in this order: :func:`load_config`, :func:`check_data`,
:func:`start_processes`, what is particular to them, :func:`fit_to_device`, and
:class:`addp_backbone.runtime.runner.StageRunner`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from addp_backbone.checkpoint.locate import find_checkpoint, find_resumable_checkpoint
from addp_backbone.files.config_text import LiteralConfig
from addp_backbone.files.shipped import config_names, find_config
from addp_backbone.runtime.config_checks import LaunchError, check_option_names, closest
from addp_backbone.runtime.cuda_options import data_parallel_options, use_cuda_options
from addp_backbone.runtime.distributed import LAUNCHERS, TIMEOUT_S
from addp_backbone.runtime.loaders import set_worker_timeouts
from addp_backbone.runtime.optim_wrappers import avoid_cuda_amp
from addp_backbone.runtime.option_parsing import ConfigOptions
from addp_backbone.runtime.scale_lr import optim_wrappers

HARMLESS_WARNINGS = (
    # gradient accumulation: schedules count batches, so they step before the optimizer does
    'Detected call of `scheduler.step',
    '`broadcast_buffers` is deprecated',  # how mmengine builds DistributedDataParallel
)
SAFE_HOOKS = (
    'SeedEachIteration',
    'StopOnBadLoss',
    'SaveWhenPreempted',
    'WatchProcesses',
    'CheckSharedMemory',
    'LimitBadSamples',
)
SHOWN_SCORE_THR = 0.3  # of detections in --show-dir
VISUALIZATION_HOOKS = {'mmdet': 'DetVisualizationHook', 'mmseg': 'SegVisualizationHook'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that training and testing share."""
    parser.add_argument('config', help='config file, or a name such as det/addp_base_maskrcnn')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)')
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default='none', help='who started the processes (see tools/dist_train.sh)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='K=V',
        help='replaces values of the config, e.g. train_dataloader.batch_size=2 model.test_cfg.rcnn.score_thr=0.1',
    )


def load_config(
    path: str, options: dict[str, Any] | None = None, work_dir: str | None = None, launcher: str = 'none'
) -> Config:
    """Reads a config file and applies the command line to it.

    Args:
        path: The file, or the name of a config of ours (:func:`addp_backbone.files.shipped.find_config`).
        options: ``--cfg-options``.
        work_dir: Goes before the config's own ``work_dir``, which goes before ``work_dirs/NAME``.
        launcher: One of :data:`LAUNCHERS`.

    Returns:
        The config.

    Raises:
        LaunchError: If the file is missing or an option is misspelt.
    """
    file = find_config(path)
    if not file.is_file():
        near = closest(file.name, (p.name for p in file.parent.glob('*.py'))) or closest(path, config_names())
        raise LaunchError(f'config {path} does not exist{near} (looked in {file.absolute().parent})')
    cfg = LiteralConfig.of(Config.fromfile(file))
    if cfg.get('default_scope') in VISUALIZATION_HOOKS:
        import_quietly(f'{cfg.default_scope}.datasets')
    if options:
        check_option_names(cfg, options)
        _make_room(cfg, options)
        try:
            cfg.merge_from_dict(options)
        except (KeyError, TypeError, ValueError) as error:
            raise LaunchError(f'--cfg-options {options} do not fit {path}: {error}') from error
    visualization = (cfg.get('default_hooks') or {}).get('visualization') or {}
    if visualization.get('type') == 'SegVisualizationHook' and not visualization.get('draw'):
        cfg.default_hooks.pop(
            'visualization'
        )  # it would do nothing but warn that it does nothing; --show-dir brings it back
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / file.stem)
    return cfg


def _make_room(cfg: Config, options: dict[str, Any]) -> None:
    """Lets ``--cfg-options a.b.c=1`` set a value below ``b=None``, as a leaf's ``init_cfg`` is; mmengine refuses to."""
    for name in options:
        node: Any = cfg
        *parents, _ = name.split('.')
        for part in parents:
            if not isinstance(node, dict | Config) or part not in node:
                break
            if node[part] is None:
                node[part] = {}
            node = node[part]


def fit_to_device(cfg: Config, cuda: bool | None = None) -> None:
    """Fits a config to the device it will run on.

    Without CUDA it replaces what needs it: SyncBN by BN, AmpOptimWrapper by bfloat16, DDP's device by none. With CUDA
    it switches on what is faster there (:mod:`addp_backbone.runtime.cuda_options`).

    Args:
        cfg: The config; changed in place.
        cuda: Whether there is CUDA; None looks.
    """
    if torch.cuda.is_available() if cuda is None else cuda:
        use_cuda_options(cfg, cuda=True)
        return
    replaced = _replace_sync_bn(cfg.model)
    if replaced:
        print_log(
            f'no CUDA: {replaced} norm layers SyncBN -> BN (statistics of each process on its own)', logger='current'
        )
    if cfg.get('optim_wrapper') and avoid_cuda_amp(cfg):
        print_log('no CUDA: AmpOptimWrapper -> BFloat16OptimWrapper', logger='current')
    if cfg.get('launcher', 'none') != 'none':
        wrapper = data_parallel_options(cfg)
        if str(wrapper['type']).endswith('DistributedDataParallel'):
            wrapper['device_ids'] = None
        cfg.model_wrapper_cfg = wrapper


def refuse_deterministic(cfg: Config, cuda: bool | None = None) -> None:
    """Refuses ``randomness.deterministic=True`` in training on CUDA.

    Args:
        cfg: Training config.
        cuda: Whether there is CUDA; None looks.

    Raises:
        LaunchError: If it is set.
    """
    if not (cfg.get('randomness') or {}).get('deterministic'):
        return
    if torch.cuda.is_available() if cuda is None else cuda:
        raise LaunchError(
            'randomness.deterministic=True cannot be had on CUDA: torch has no deterministic kernel for the gradients '
            'of bicubic interpolation (position embeddings) and RoIAlign, and would stop in the first iteration. Leave '
            'it out: with randomness.seed a run repeats up to the order of sums'
        )


def set_timeouts(cfg: Config) -> float:
    """Sets the timeouts that a config leaves open, of data workers and of collective operations; changes ``cfg``.

    Returns:
        Seconds that a collective operation may take, ``env_cfg.dist_cfg.timeout``.
    """
    set_worker_timeouts(cfg)
    environment = dict(cfg.get('env_cfg') or {})
    options = dict(dict(timeout=TIMEOUT_S), **(environment.get('dist_cfg') or {}))
    cfg.env_cfg = dict(environment, dist_cfg=options)
    return options['timeout']


def use_safe_hooks(cfg: Config, world_size: int) -> None:
    """Adds what every training has, also if a config replaced its list of hooks: :data:`SAFE_HOOKS`, saving, log.

    Args:
        cfg: Training config; changed in place.
        world_size: Number of processes.

    Raises:
        LaunchError: If several processes would save within a gradient accumulation, where each has its own gradients,
            or if the loss scale is fixed, so that nobody would see skipped steps.
    """
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    if checkpoint and checkpoint.type == 'CheckpointHook':
        checkpoint.type = 'SafeCheckpointHook'
    if not cfg.get('strategy'):  # with shards nothing was measured
        cfg.setdefault('default_hooks', {}).setdefault('runtime_info', dict(type='DeferredInfoHook'))
    hooks = list(cfg.get('custom_hooks') or [])
    present = {hook['type'] for hook in hooks}
    hooks += [dict(type=name) for name in SAFE_HOOKS if name not in present]
    cfg.custom_hooks = hooks
    for option, wrapper in optim_wrappers(cfg):
        scale = wrapper.get('loss_scale')
        if isinstance(scale, int | float):
            raise LaunchError(
                f'{option}.loss_scale is {scale!r}, a fixed one: it does not fall when gradients overflow, and every '
                f"step might be skipped unseen. Set it to dict(init_scale={scale!r}) to begin with it, or to 'dynamic'"
            )
    if checkpoint and not checkpoint.get('by_epoch', True) and world_size > 1:
        for option, wrapper in optim_wrappers(cfg):
            count = wrapper.get('accumulative_counts', 1)
            if checkpoint.get('interval', -1) > 0 and checkpoint.interval % count:
                raise LaunchError(
                    f'default_hooks.checkpoint.interval={checkpoint.interval} is no multiple of '
                    f'{option}.accumulative_counts={count}: with several processes a checkpoint within an accumulation '
                    'would lose gradients. Set '
                    f'default_hooks.checkpoint.interval={-(-checkpoint.interval // count) * count}'
                )


def set_resume(cfg: Config, resume: str | None) -> None:
    """Applies ``--resume`` to a training config.

    Args:
        cfg: Changed in place.
        resume: None (the option is absent), 'auto' (no value: the newest checkpoint in the work dir that verifies, a
            fresh start if there is none), or a checkpoint or the work dir of another run.

    Raises:
        LaunchError: If the checkpoint does not exist.
        CheckpointError: If there are checkpoints, but none is whole.
    """
    if resume is None:
        return
    if resume == 'auto':
        latest = find_resumable_checkpoint(cfg.work_dir)
    else:
        if not Path(resume).exists():
            raise LaunchError(
                f'--resume {resume}: no such checkpoint; --resume without a value takes the latest in {cfg.work_dir}'
            )
        latest = find_resumable_checkpoint(resume) if Path(resume).is_dir() else find_checkpoint(resume, '--resume')
    if latest is None:
        print_log(f'--resume: no checkpoint in {cfg.work_dir} yet, starting from the beginning', logger='current')
        return
    cfg.resume, cfg.load_from = True, str(latest)


def draw_predictions(cfg: Config, folder: str) -> None:
    """Makes testing write an overlay of every image into ``folder`` (``--show-dir``); changes ``cfg``.

    Sub-folders of the data set are kept.

    Raises:
        LaunchError: If the config's task has no overlays.
    """
    hook = cfg.setdefault('default_hooks', {}).get('visualization')
    name = hook['type'] if hook else VISUALIZATION_HOOKS.get(cfg.get('default_scope'))
    if name not in VISUALIZATION_HOOKS.values():
        raise LaunchError(
            f'--show-dir draws detections and segmentations, not the results of this config (visualization hook {name})'
        )
    options: dict[str, Any] = dict(folder=str(Path(folder).absolute()))
    if name == 'DetVisualizationHook':
        options.update(options=dict(pred_score_thr=SHOWN_SCORE_THR))
    else:
        options.update(name='test_{name}_{index}.png')
    cfg.default_hooks['visualization'] = dict(type='DrawTestImages', **options)


def encode_masks(cfg: Config) -> None:
    """Lets a detector with our mask head hand masks over as run-length codes, where our metric takes them.

    Args:
        cfg: The config; changed in place. mmdet's own metrics and visualizers are left with bitmaps.
    """
    evaluators = cfg.get('test_evaluator') or []
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    stages = cfg.model.get('test_cfg') or {}
    if 'rcnn' in stages and all(evaluator.get('type') == 'QuickCocoMetric' for evaluator in evaluators):
        stages['rcnn']['encode_masks'] = True


def import_quietly(module: str) -> None:
    """Imports what the Runner would import later, without the lines about an optional package that mmdet prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        importlib.import_module(module)
    rest = [line for line in printed.getvalue().splitlines() if not line.startswith('Could not import')]
    sys.stdout.writelines(f'{line}\n' for line in rest)


def _replace_sync_bn(node: Any) -> int:
    """Replaces every ``dict(type='SyncBN')`` in a config tree; returns their number."""
    if isinstance(node, list | tuple):
        return sum(_replace_sync_bn(child) for child in node)
    if not isinstance(node, dict):
        return 0
    found = int(node.get('type') == 'SyncBN')
    if found:
        node['type'] = 'BN'
    return found + sum(_replace_sync_bn(child) for child in node.values())
