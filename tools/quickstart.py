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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from addp_backbone.files.atomic import replace_file
from addp_backbone.runtime.environment import num_cores
from experiments.miniature.report import make_report
from experiments.miniature.table import Miniature, Sizes, as_markdown
from experiments.processes import ToolForks, start_command
from experiments.stages import Stage, StageError, finished_seconds, run_stages

ROOT = Path(__file__).resolve().parents[1]
MAX_LANES = 4


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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


def run(stages: Sequence[Stage], work: Path) -> str:
    """Runs what has not finished yet, as many stages side by side as there are cores, at most :data:`MAX_LANES`; returns how."""
    cores = num_cores()
    lanes = min(MAX_LANES, cores)
    threads = cores // lanes
    run_stages(stages, work, ROOT, lanes, ToolForks(threads) if sys.platform == 'linux' else start_command)
    return f'{lanes} side by side with {threads} CPU thread{"s" * (threads > 1)} each'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what has not finished yet; prints and writes the table and the report."""
    args = parse_args(argv)
    work = args.work_dir.absolute()
    sizes = Sizes().scaled(args.scale).pretrained(args.pretraining).transferred(args.transfer)
    miniature = Miniature(work, sizes, args.seeds, args.amp)
    stages = miniature.stages()
    started = time.monotonic()
    try:
        lanes = run(stages, work)
    except StageError as error:
        print(f'quickstart: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nquickstart: stopped; the same command goes on from here', file=sys.stderr)
        return 130
    results = miniature.results()
    table = as_markdown(results)
    minutes = sum(finished_seconds(stage, work) or 0 for stage in stages) / 60
    notes = [
        f'{minutes:.1f} minutes of stages, {lanes}; {(time.monotonic() - started) / 60:.1f} minutes in all since this command started. '
        f'{len(stages)} stages, {"bfloat16" if args.amp else "float32"}, torch {torch.__version__}, {platform.machine()}.'
    ]
    replace_file(work / 'results.json', json.dumps(results, indent=2) + '\n')
    replace_file(work / 'results.md', table)
    replace_file(work / 'report.html', make_report(miniature, results, notes))
    print(f'\n{table}\n{notes[0]}\nOpen {work}/report.html for curves and pictures.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
