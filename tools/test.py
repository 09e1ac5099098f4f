"""Evaluates a checkpoint and reports AP, mIoU or top-1, whichever the config measures.

python tools/test.py CONFIG CKPT [--out METRICS.json] [--show-dir D] [--work-dir D] [--cfg-options k=v ...]
tools/dist_test.sh CONFIG CKPT PROCESSES [the same options]      several processes, same numbers
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.dist import is_main_process

from addp_backbone.checkpoint.locate import find_checkpoint
from addp_backbone.checkpoint.storage import CheckpointError
from addp_backbone.files.atomic import replace_file
from addp_backbone.runtime.config_checks import LaunchError, check_data
from addp_backbone.runtime.launch import (
    add_arguments,
    draw_predictions,
    fit_to_device,
    load_config,
    start_processes,
    stop_processes,
)
from addp_backbone.runtime.runner import StageRunner
from pretrain.data.labelled import settle_classes


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or ``words`` in its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument(
        'checkpoint', help='checkpoint of a training run with this config, or its work dir: the latest checkpoint'
    )
    parser.add_argument('--out', metavar='F.json', help='file for the metrics, as printed')
    parser.add_argument('--show-dir', metavar='D', help='folder for an overlay of every image')
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Prepares the config, evaluates, prints and writes the metrics."""
    arguments = parse_arguments(words)
    cfg = load_config(arguments.config, arguments.cfg_options, arguments.work_dir, arguments.launcher)
    try:
        checkpoint = find_checkpoint(arguments.checkpoint)
    except CheckpointError as error:
        raise LaunchError(
            f'checkpoint {arguments.checkpoint} does not exist; training writes iter_*.pth into its work dir'
        ) from error
    if arguments.out and not arguments.out.endswith('.json'):
        raise LaunchError(f'--out {arguments.out}: wanted a file that ends in .json')
    if cfg.get('test_dataloader') is None:
        raise LaunchError(f'{arguments.config} has no test_dataloader, so there is nothing to measure')
    check_data(cfg, 'test')
    settle_classes(cfg)
    start_processes(arguments.launcher)
    cfg.load_from, cfg.resume = str(checkpoint), False
    if arguments.show_dir:
        draw_predictions(cfg, arguments.show_dir)
    fit_to_device(cfg)
    metrics = {name: _plain(value) for name, value in StageRunner.from_cfg(cfg).test().items()}
    if is_main_process():
        if not metrics:
            print('no metrics: the model predicted nothing at all (see model.test_cfg)')
        for name, value in metrics.items():
            print(f'{name}: {value}')
        if arguments.out:
            replace_file(arguments.out, json.dumps(metrics, indent=2) + '\n')
    stop_processes()


def _plain(value: Any) -> Any:
    """A number as JSON has it: no numpy scalars, None for NaN (no such object in the data)."""
    number = value.item() if hasattr(value, 'item') else value
    return None if isinstance(number, float) and math.isnan(number) else number


if __name__ == '__main__':
    try:
        main()
    except (LaunchError, CheckpointError) as error:
        sys.exit(f'error: {error}')
