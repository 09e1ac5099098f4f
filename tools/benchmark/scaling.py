"""How time and memory of the backbone grow with image size and batch: forward + backward of ViT-B, float32.

    python tools/benchmark/scaling.py                                # 512, 768, 1024 and 1536 px, batches of 1, 2 and 4
    python tools/benchmark/scaling.py --sizes 512 1024 --batches 1

Rows have no peer. Sizes that would need more than --memory are left out. What is shared (--json too): pairs.py.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.benchmark.backbone import Job, prepare_ours
from tools.benchmark.pairs import Row, add_arguments, measure, print_row, time_row

BYTES_PER_PIXEL = 2900  # measured: 3.0 GB for ViT-B at 1024 x 1024


def fits(job: Job, memory_gb: float) -> bool:
    """Whether a job is expected to need no more memory."""
    return job.batch_size * job.img_size**2 * BYTES_PER_PIXEL <= memory_gb * 1e9


def run(job: Job, pairs: int, threads: int) -> Row:
    """Measures one row."""
    ours = measure(dict(ours=partial(prepare_ours, job)), pairs, threads)['ours']
    megapixels = job.batch_size * job.img_size**2 / 1e6
    row = time_row(job.name, ours, None, threads, goal="linear in pixels, but for the global blocks' arithmetic")
    return replace(row, note=f'a megapixel: {ours.time_s / megapixels:.3g} s, {ours.memory_gb / megapixels:.3g} GB')


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--sizes', type=int, nargs='+', default=(512, 768, 1024, 1536), metavar='PX', help='default: %(default)s'
    )
    parser.add_argument('--batches', type=int, nargs='+', default=(1, 2, 4), metavar='B', help='default: %(default)s')
    parser.add_argument('--memory', type=float, default=20.0, metavar='GB', help='default: %(default)s')
    add_arguments(parser, pairs=1)
    args = parser.parse_args(words)
    sizes, batches, arch = ((64, 128), (1,), 'tiny') if args.smoke else (args.sizes, args.batches, 'base')
    for size, batch in itertools.product(sizes, batches):
        job = Job('train', False, size, batch, arch)
        if fits(job, args.memory):
            print_row(run(job, args.pairs, args.threads), args.json)


if __name__ == '__main__':
    main()
