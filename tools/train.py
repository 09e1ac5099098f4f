"""Trains any stage: pre-training, classification, detection, segmentation; the config says which.

python tools/train.py CONFIG [--work-dir D] [--resume [CKPT]] [--amp] [--auto-scale-lr] [--log-to wandb ...]
                      [--cfg-options k=v ...]
tools/dist_train.sh CONFIG PROCESSES [the same options]          several processes, with or without CUDA

SIGTERM, SIGUSR1, the first Ctrl-C and the end of --max-time save after the running iteration; exit code 85 then, and
--resume goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext

from command_line import OK, make_parser, run_command

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS

from addp_backbone.checkpoint.storage import CheckpointError
from addp_backbone.runtime.compiling import check_compile, compile_networks
from addp_backbone.runtime.config_checks import LaunchError, check_data
from addp_backbone.runtime.curves import BACKENDS, use_curves
from addp_backbone.runtime.distributed import is_first_process, start_processes, stop_processes, was_restarted
from addp_backbone.runtime.launch import (
    add_arguments,
    fit_to_device,
    load_config,
    refuse_deterministic,
    set_resume,
    set_timeouts,
    use_safe_hooks,
)
from addp_backbone.runtime.optim_wrappers import use_amp
from addp_backbone.runtime.option_names import check_names
from addp_backbone.runtime.option_values import check_values
from addp_backbone.runtime.preemption import PREEMPTED, PeerEndedError, PreemptedError, catch_signals, leave_marker
from addp_backbone.runtime.runner import StageRunner
from addp_backbone.runtime.saving import BadLossError
from addp_backbone.runtime.scale_lr import describe_changes, scale_lr
from addp_backbone.runtime.sharding import check_sharding
from addp_backbone.runtime.short_schedules import fit_schedule
from addp_backbone.runtime.stopping import parse_duration
from addp_backbone.runtime.tf32 import apply_tf32_option
from addp_backbone.runtime.work_dir import owned
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
        '--max-time',
        metavar='T',
        help='save and end, with exit code 85, once T has passed since the start, e.g. 8h, 1h30m, 45m, 90s',
    )
    parser.add_argument('--compile', action='store_true', help='networks by torch.compile; needs a C++ compiler')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='fit learning rate and iterations to the real global batch'
    )
    parser.add_argument(
        '--log-to',
        nargs='+',
        default=[],
        choices=list(BACKENDS),
        metavar='NAME',
        help=f'curves go there too: {", ".join(BACKENDS)} (the configs name tensorboard already)',
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Prepares the config and trains; returns ``PREEMPTED`` if a signal ended the run after it had saved."""
    began = time.monotonic()
    seconds = parse_duration(args.max_time) if args.max_time else None
    with catch_signals():
        cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
        if seconds is not None:
            limit = dict(type='StopAfterTime', seconds=seconds, began=began)
            cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), limit]
        if args.amp:
            use_amp(cfg)  # before names are checked: it brings options of its own, such as dtype
        check_values(cfg)
        check_names(cfg)
        check_sharding(cfg)
        use_curves(cfg, args.log_to)
        if args.compile:
            check_compile(cfg)
        for split in ('train', 'val'):
            check_data(cfg, split)
        settle_classes(cfg)
        world_size = start_processes(args.launcher, set_timeouts(cfg))
        with owned(cfg.work_dir) if is_first_process(args.launcher) else nullcontext():
            try:
                train(cfg, args, world_size)
            except PreemptedError as stop:
                print_log(str(stop), logger='current', level=logging.WARNING)
                stop_processes()
                return OK if leave_marker() else PREEMPTED
        stop_processes()
        return OK


def train(cfg: Config, args: argparse.Namespace, world_size: int) -> None:
    """Applies the options and runs the training."""
    table = (
        scale_to_batch(cfg, world_size)
        if args.auto_scale_lr or (cfg.get('auto_scale_lr') or {}).get('enable')
        else None
    )
    shortened = fit_schedule(cfg)
    set_resume(cfg, args.resume or ('auto' if was_restarted() else None))
    use_safe_hooks(cfg, world_size)
    fit_to_device(cfg)
    refuse_deterministic(cfg)
    apply_tf32_option(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else StageRunner.from_cfg(cfg)  # FlexibleRunner for FSDP
    compiled = f'compiled when they first run: {", ".join(compile_networks(runner.model))}' if args.compile else None
    for line in filter(None, (table, shortened, compiled)):
        print_log(line, logger='current')
    try:
        runner.train()
    except PreemptedError:
        runner.visualizer.close()  # writes what it holds back
        raise


def scale_to_batch(cfg: Config, world_size: int) -> str:
    """Applies ``--auto-scale-lr``; returns the table for the log."""
    changes = scale_lr(cfg, world_size)
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    return describe_changes(
        changes, cfg.auto_scale_lr.base_batch_size, cfg.train_dataloader.batch_size * world_size * accumulation
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv), (LaunchError, CheckpointError, BadLossError, PeerEndedError, OSError))


if __name__ == '__main__':
    sys.exit(main())
