"""How time and memory of the backbone grow with image size and batch: forward + backward of ViT-B, float32.

    python -m tools.benchmark.scaling                                # 512, 768, 1024 and 1536 px, batches of 1, 2 and 4
    python -m tools.benchmark.scaling --sizes 512 1024 --batches 1

Rows have no peer. Sizes that would need more than --memory are left out. What is shared (--json too): pairs.py.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from tools.benchmark.backbone import Job, prepare_ours
from tools.benchmark.pairs import BenchmarkRow, add_arguments, measure, print_row, time_row
from tools.command_line import make_parser, run_command

BYTES_PER_PIXEL = 2900  # measured: 3.0 GB for ViT-B at 1024 x 1024


def fits(job: Job, memory_gb: float) -> bool:
    """Whether a job is expected to need no more memory."""
    return job.batch_size * job.img_size**2 * BYTES_PER_PIXEL <= memory_gb * 1e9


def measure_row(job: Job, pairs: int, threads: int) -> BenchmarkRow:
    """Measures one row."""
    ours = measure(dict(ours=partial(prepare_ours, job)), pairs, threads)['ours']
    megapixels = job.batch_size * job.img_size**2 / 1e6
    row = time_row(job.name, ours, None, threads, goal="linear in pixels, but for the global blocks' arithmetic")
    return replace(row, note=f'a megapixel: {ours.time_s / megapixels:.3g} s, {ours.memory_gb / megapixels:.3g} GB')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        '--sizes', type=int, nargs='+', default=(512, 768, 1024, 1536), metavar='PX', help='default: %(default)s'
    )
    parser.add_argument('--batches', type=int, nargs='+', default=(1, 2, 4), metavar='B', help='default: %(default)s')
    parser.add_argument('--memory', type=float, default=20.0, metavar='GB', help='default: %(default)s')
    add_arguments(parser, pairs=1)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measures and prints."""
    sizes, batches, arch = ((64, 128), (1,), 'tiny') if args.smoke else (args.sizes, args.batches, 'base')
    for size, batch in itertools.product(sizes, batches):
        job = Job('train', False, size, batch, arch)
        if fits(job, args.memory):
            print_row(measure_row(job, args.pairs, args.threads), args.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
