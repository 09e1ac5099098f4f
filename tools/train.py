"""Trains any stage: pre-training, classification, detection, segmentation; the config says which.

python tools/train.py CONFIG [--work-dir D] [--resume [CKPT]] [--amp] [--auto-scale-lr] [--cfg-options k=v ...]
tools/dist_train.sh CONFIG PROCESSES [the same options]          several processes, with or without CUDA
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from command_line import make_parser, run_command

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS

from addp_backbone.checkpoint.storage import CheckpointError
from addp_backbone.runtime.config_checks import LaunchError, check_data
from addp_backbone.runtime.launch import (
    add_arguments,
    fit_to_device,
    load_config,
    set_resume,
    start_processes,
    stop_processes,
    use_safe_hooks,
)
from addp_backbone.runtime.optim_wrappers import use_amp
from addp_backbone.runtime.runner import StageRunner
from addp_backbone.runtime.saving import BadLossError
from addp_backbone.runtime.scale_lr import describe_changes, scale_lr
from addp_backbone.runtime.short_schedules import fit_schedule
from pretrain.data.labelled import settle_classes


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    add_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='go on from CKPT, or without a value from the latest checkpoint in the work dir',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: float16 on CUDA (or optim_wrapper.dtype), bfloat16 on the CPU',
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='fit learning rate and iterations to the real global batch'
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Prepares the config and trains."""
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    for split in ('train', 'val'):
        check_data(cfg, split)
    settle_classes(cfg)
    world_size = start_processes(args.launcher)
    table = (
        scale_to_batch(cfg, world_size)
        if args.auto_scale_lr or (cfg.get('auto_scale_lr') or {}).get('enable')
        else None
    )
    shortened = fit_schedule(cfg)
    if args.amp:
        use_amp(cfg)
    set_resume(cfg, args.resume)
    use_safe_hooks(cfg, world_size)
    fit_to_device(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else StageRunner.from_cfg(cfg)  # FlexibleRunner for FSDP
    for line in filter(None, (table, shortened)):
        print_log(line, logger='current')
    runner.train()
    stop_processes()


def scale_to_batch(cfg: Config, world_size: int) -> str:
    """Applies ``--auto-scale-lr``; returns the table for the log."""
    changes = scale_lr(cfg, world_size)
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    return describe_changes(
        changes, cfg.auto_scale_lr.base_batch_size, cfg.train_dataloader.batch_size * world_size * accumulation
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv), (LaunchError, CheckpointError, BadLossError, OSError))


if __name__ == '__main__':
    sys.exit(main())
