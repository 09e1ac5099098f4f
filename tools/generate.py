"""Generates images as PNG: 00000.png ... and a contact sheet grid.png.

    python tools/generate.py CONFIG CKPT --num-images 64 --out samples
    python tools/generate.py CONFIG CKPT --num-images 64 --out samples --steps 256 --schedule linear --steps-figure
    tools/dist_generate.sh CONFIG CKPT PROCESSES --num-images 50000 --out samples     several processes, the same files

CONFIG is a pre-training config of ADDP, CKPT a released file or a checkpoint (or work dir) of that training. Image i
depends on --seed and i, and on the settings noted in OUT/generation.json. A cut run goes on when started again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from command_line import make_parser, run_command

import torch
from mmengine.logging import MMLogger
from tqdm import tqdm

from addp_backbone.files.images import write_png
from pretrain.data.figures import STEPS_FILE
from pretrain.generation.options import add_model_arguments, read_model, read_sampling
from pretrain.generation.run import (
    Process,
    claim_folder,
    fingerprint,
    finish,
    open_blocks,
    steps_figure,
    write_images,
)
from pretrain.weights.generator import precision


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    add_model_arguments(parser)
    parser.add_argument('--num-images', type=int, required=True, metavar='N')
    parser.add_argument(
        '--batch-size', type=int, default=16, metavar='B', help='images computed together (default: %(default)s)'
    )
    parser.add_argument(
        '--steps-figure',
        type=int,
        nargs='?',
        const=0,
        metavar='I',
        help=f'also save how image I (default: 0) emerges, as {STEPS_FILE}',
    )
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch', 'slurm'), default='none', help='see tools/dist_generate.sh'
    )
    args = parser.parse_args(argv)
    if args.num_images < 1 or args.batch_size < 1:
        parser.error('--num-images and --batch-size must be at least 1')
    return args


def show_progress(blocks: Iterable[range], total: int, process: Process) -> Iterator[range]:
    """Shows the first process's images and images/s."""
    share = f' (process 1 of {process.count})' if process.count > 1 else ''
    with tqdm(total=total, unit='image', desc=f'generating{share}', disable=process.rank > 0) as bar:
        for block in blocks:
            yield block
            bar.update(len(block))


def choose_device(process: Process) -> torch.device:
    """The device of a process, made current; several processes may share a GPU, as they do not talk to each other."""
    if not torch.cuda.is_available():
        return torch.device('cpu')
    device = torch.device('cuda', process.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def run(args: argparse.Namespace) -> None:
    """Generates."""
    process = Process.of_launcher(args.launcher)
    sampling = read_sampling(args)
    if process.rank:
        MMLogger.get_current_instance().setLevel('ERROR')
    model = read_model(args)
    device = choose_device(process)
    other = claim_folder(
        args.out,
        dict(asdict(sampling), seed=args.seed, precision=args.precision, weights_sha256=fingerprint(model)),
        dict(
            batch_size=args.batch_size,
            threads=args.threads,
            device=torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type,
            torch=torch.__version__,
        ),
    )
    missing = open_blocks(args.out, args.num_images, args.batch_size, process)
    if other and missing and process.rank == 0:
        print(
            f'note: images that are there were computed otherwise ({other}): those made now may differ in rounding '
            'from those of an unbroken run',
            file=sys.stderr,
        )
    model.to(device)
    with precision(model, args.precision):
        write_images(
            model,
            args.out,
            args.num_images,
            args.seed,
            sampling,
            args.batch_size,
            process,
            lambda blocks, total: show_progress(blocks, total, process),
        )
        if args.steps_figure is not None and process.rank == 0:
            write_png(steps_figure(model, args.seed, args.steps_figure, sampling), args.out / STEPS_FILE)
    finish(args.out, args.num_images, process)
    if process.rank == 0:
        print(f'{args.out}: {args.num_images} images')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
