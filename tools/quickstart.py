"""The paper's table in miniature, from generated images: pre-training, generation, classification, Mask R-CNN, UperNet.

    make quickstart            python tools/quickstart.py                  one seed
    make miniature             python tools/quickstart.py --seeds 0 1 2 --pretraining 4 --work-dir work_dirs/miniature

No download, no GPU. Cut off and started again, it goes on where it stopped. Written into --work-dir: results.md,
results.json, report.html (open it in a browser) and everything that the stages make. Every number is read from an
evaluation's own file.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from command_line import ROOT, make_parser, run_command

import torch

from addp_backbone.files.atomic import replace_file
from addp_backbone.runtime.environment import num_cores
from experiments.engine import dry_run, run_stages
from experiments.miniature.plan import Miniature
from experiments.miniature.report import make_report
from experiments.miniature.sizes import Sizes
from experiments.miniature.table import as_markdown, read_results
from experiments.processes import ToolForks, start_command
from experiments.stages import Stage, StageError, finished_seconds

MAX_LANES = 4


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        '--work-dir', type=Path, default=ROOT / 'work_dirs/quickstart', help='folder for everything it makes'
    )
    parser.add_argument(
        '--scale', type=float, default=1.0, help='multiplies images and iterations; 0.01 shows in minutes that it runs'
    )
    parser.add_argument(
        '--pretraining',
        type=float,
        default=1.0,
        metavar='FACTOR',
        help='multiplies the iterations of ADDP (after --scale), and nothing of what is compared',
    )
    parser.add_argument(
        '--transfer',
        type=float,
        default=1.0,
        metavar='FACTOR',
        help='multiplies the iterations of Mask R-CNN and UperNet, from both kinds of weights (after --scale)',
    )
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=[0], help='seeds of the transfer trainings (default: 0)'
    )
    parser.add_argument(
        '--amp',
        action=argparse.BooleanOptionalAction,
        default=has_quick_bfloat16(),
        help='train in bfloat16 autocast (default: if the CPU has instructions for it)',
    )
    parser.add_argument('--dry-run', action='store_true', help='print every command and run none')
    args = parser.parse_args(argv)
    factors = args.scale, args.pretraining, args.transfer
    if min(factors) <= 0 or len(set(args.seeds)) != len(args.seeds):
        parser.error(
            f'--scale, --pretraining and --transfer must be positive and --seeds differ, got {factors} and {args.seeds}'
        )
    return args


def has_quick_bfloat16() -> bool:
    """Whether bfloat16 is the quicker choice: with AVX-512's instructions or AMX, not where it is emulated."""
    return any(
        bool(getattr(torch.cpu, name, bool)()) for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported')
    )


def run_side_by_side(stages: Sequence[Stage], work: Path) -> str:
    """Runs what has not finished yet, as many stages at once as there are cores, at most :data:`MAX_LANES`.

    Returns:
        How many, and with how many threads.
    """
    cores = num_cores()
    lanes = min(MAX_LANES, cores)
    threads = cores // lanes
    run_stages(stages, work, lanes=lanes, start=ToolForks(threads) if sys.platform == 'linux' else start_command)
    return f'{lanes} side by side with {threads} CPU thread{"s" * (threads > 1)} each'


def run(args: argparse.Namespace) -> None:
    """Runs what has not finished yet; prints and writes the table and the report."""
    work = args.work_dir.absolute()
    sizes = Sizes().scaled(args.scale).pretrained(args.pretraining).transferred(args.transfer)
    miniature = Miniature(work, sizes, args.seeds, args.amp)
    stages = miniature.stages()
    if args.dry_run:
        print('\n'.join(dry_run(stages, work)))
        return
    started = time.monotonic()
    try:
        lanes = run_side_by_side(stages, work)
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on from here', file=sys.stderr)
        raise
    results = read_results(miniature)
    table = as_markdown(results)
    minutes = sum(finished_seconds(stage, work) or 0 for stage in stages) / 60
    in_all = (time.monotonic() - started) / 60
    precision = 'bfloat16' if args.amp else 'float32'
    note = (
        f'{minutes:.1f} minutes of stages, {lanes}; {in_all:.1f} minutes in all since this command started. '
        f'{len(stages)} stages, {precision}, torch {torch.__version__}, {platform.machine()}.'
    )
    replace_file(work / 'results.json', json.dumps(results, indent=2) + '\n')
    replace_file(work / 'results.md', table)
    replace_file(work / 'report.html', make_report(miniature, results, [note]))
    print(f'\n{table}\n{note}\nOpen {work}/report.html for curves and images.')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv), (StageError, OSError))


if __name__ == '__main__':
    sys.exit(main())
