"""Evaluates a checkpoint and reports AP, mIoU or top-1, whichever the config measures.

python tools/test.py CONFIG CKPT [--out METRICS.json] [--per-image F.npz] [--show-dir D] [--work-dir D]
                     [--cfg-options k=v ...]
python tools/test.py CONFIG CKPT --format-only      data without labels: writes WORK_DIR/results.*, measures nothing
tools/dist_test.sh CONFIG CKPT PROCESSES [the same options]      several processes, same numbers
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import make_parser, run_command

from mmengine.dist import is_main_process

from addp_backbone.checkpoint.locate import find_checkpoint
from addp_backbone.checkpoint.storage import CheckpointError
from addp_backbone.files.atomic import replace_file
from addp_backbone.runtime.config_checks import LaunchError, check_data
from addp_backbone.runtime.distributed import start_processes, stop_processes
from addp_backbone.runtime.image_areas import keep_image_results
from addp_backbone.runtime.launch import (
    add_arguments,
    draw_predictions,
    encode_masks,
    fit_to_device,
    load_config,
    set_timeouts,
)
from addp_backbone.runtime.option_names import check_names
from addp_backbone.runtime.option_values import check_values
from addp_backbone.runtime.runner import StageRunner
from addp_backbone.runtime.tf32 import EVALUATION_PRECISIONS, evaluation_precision
from addp_backbone.runtime.unlabelled import check_labels, format_only
from pretrain.data.labelled import settle_classes


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    add_arguments(parser)
    parser.add_argument(
        'checkpoint', help='checkpoint of a training run with this config, or its work dir: the latest checkpoint'
    )
    parser.add_argument(
        '--out', metavar='F.json', help='file for the metrics, as printed; with --format-only: where results go, F.*'
    )
    parser.add_argument(
        '--format-only',
        action='store_true',
        help='measure nothing: write detections as COCO results, class maps as PNG (default: WORK_DIR/results.*)',
    )
    parser.add_argument(
        '--precision',
        choices=EVALUATION_PRECISIONS,
        default='fp32',
        help='bf16 and fp16: of the backbone; publish numbers of fp32 (default: %(default)s)',
    )
    parser.add_argument(
        '--per-image',
        metavar='F.npz',
        help='file for what AP and mIoU follow from, image by image, which tools/compare.py draws intervals from',
    )
    parser.add_argument('--show-dir', metavar='D', help='folder for an overlay of every image')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Prepares the config, evaluates, prints and writes the metrics."""
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    check_values(cfg)
    check_names(cfg)
    try:
        checkpoint = find_checkpoint(args.checkpoint)
    except CheckpointError as error:
        raise LaunchError(
            f'checkpoint {args.checkpoint} does not exist; training writes iter_*.pth into its work dir'
        ) from error
    if args.out and not args.out.endswith('.json'):
        raise LaunchError(f'--out {args.out}: wanted a file that ends in .json')
    if cfg.get('test_dataloader') is None:
        raise LaunchError(f'{args.config} has no test_dataloader, so there is nothing to measure')
    written = ''
    if args.format_only:
        written = format_only(cfg, Path(args.out).with_suffix('') if args.out else Path(cfg.work_dir, 'results'))
    else:
        check_labels(cfg)
    if args.per_image:
        keep_image_results(cfg, args.per_image)
    check_data(cfg, 'test')
    settle_classes(cfg)
    start_processes(args.launcher, set_timeouts(cfg))
    cfg.load_from, cfg.resume = str(checkpoint), False
    if args.show_dir:
        draw_predictions(cfg, args.show_dir)
    else:
        encode_masks(cfg)
    fit_to_device(cfg)
    runner = StageRunner.from_cfg(cfg)
    with evaluation_precision(args.precision, runner.model):
        metrics = {name: _plain(value) for name, value in runner.test().items()}
    if is_main_process() and written:
        print(f'--format-only: nothing was measured; predictions written: {written}')
    elif is_main_process():
        if not metrics:
            print('no metrics: the model predicted nothing at all (see model.test_cfg)')
        for name, value in metrics.items():
            print(f'{name}: {value}')
        if args.out:
            replace_file(args.out, json.dumps(metrics, indent=2) + '\n')
    stop_processes()


def _plain(value: Any) -> Any:
    """A number as JSON has it: no numpy scalars, None for NaN (no such object in the data)."""
    number = value.item() if hasattr(value, 'item') else value
    return None if isinstance(number, float) and math.isnan(number) else number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv), (LaunchError, CheckpointError, OSError))


if __name__ == '__main__':
    sys.exit(main())
