r"""Few-shot classification: trains on k images a class once for each seed, tests on everything, prints mean and spread.

    python tools/few_shot.py pretrain/configs/linear_base.py \
        --cfg-options few_shot.images_per_class=5 few_shot.seeds=0,1,2

Which images, and initial weights and augmentation, follow from the seed. Written: WORK_DIR/images_K/seed_S (a run each)
and WORK_DIR/few_shot.json. A cut command goes on when started again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import make_parser, run_command

from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.launch import load_config
from addp_backbone.runtime.option_parsing import parse_options
from pretrain.classification.few_shot import run_few_shot


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('config', help='classification config; its few_shot says how many images and which seeds')
    parser.add_argument('--work-dir', help='folder for the runs (default: work_dirs/CONFIG_NAME_few_shot)')
    parser.add_argument(
        '--processes', type=int, default=1, metavar='N', help='processes a run, on one machine (default: %(default)s)'
    )
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='K=V', help='as in tools/train.py')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Runs the protocol and prints the means."""
    cfg = load_config(args.config, parse_options(args.cfg_options))
    work_dir = Path(args.work_dir or f'{cfg.work_dir}_few_shot')
    summary = run_few_shot(cfg, args.config, work_dir, args.processes, args.cfg_options)
    for name, entry in summary.items():
        if isinstance(entry, dict):
            values = ', '.join(f'{value:.2f}' for value in entry['values'].values())
            print(
                f'{name}: {entry["mean"]:.2f} +- {entry["std"]:.2f} ({values}) '
                f'with {summary["images_per_class"]} images a class'
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv), (LaunchError, OSError))


if __name__ == '__main__':
    sys.exit(main())
