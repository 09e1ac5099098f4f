"""Generates data sets of textured shapes, so that every task can be run without a download.

    python tools/make_shapes.py data/shapes --train 400 --val 100                    # detection and segmentation
    python tools/make_shapes.py data/shapes --train-per-class 200 --val-per-class 50  # classification, too
    python tools/make_shapes.py data/shapes-plain --train 0 --val 0 --plain 5000      # pre-training only

Written: images/{train,val} with instances_{train,val}.json (COCO, ten classes) and annotations/{train,val} (masks by
ADE20K's convention: 1 = background, 2..11 = shapes, 0 = void never occurs); classes/{train,val}/<class>; plain;
classes.json. A cut run goes on when started again with the same options; the images do not depend on --workers.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from command_line import make_parser, run_command

from tqdm import tqdm

from addp_backbone.datasets.shapes.scenes import MAX_CLUTTER
from addp_backbone.datasets.shapes.writer import ShapeSettings, write_shapes
from addp_backbone.runtime.environment import num_cores


def parse_size(text: str) -> tuple[int, int]:
    """Reads ``256`` or ``WIDTHxHEIGHT``; returns height, width."""
    found = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
    if not found:
        raise argparse.ArgumentTypeError(f'wanted 256 or 480x360 (width x height), got {text!r}')
    return int(found[2] or found[1]), int(found[1])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        'out', type=Path, metavar='OUT', help='folder to write: new, empty, or begun with the same options'
    )
    parser.add_argument('--train', type=int, default=200, help='training scenes (default: %(default)s)')
    parser.add_argument('--val', type=int, default=50, help='validation scenes (default: %(default)s)')
    parser.add_argument('--train-per-class', type=int, default=0, help='training images of one object, for each class')
    parser.add_argument('--val-per-class', type=int, default=0, help='validation images of one object, for each class')
    parser.add_argument('--plain', type=int, default=0, help='images without labels, for pre-training')
    parser.add_argument('--size', type=parse_size, default=(256, 256), help='256 or 480x360 (default: 256)')
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    parser.add_argument(
        '--typical',
        type=float,
        default=0.0,
        metavar='P',
        help="probability that a shape is of its class's typical "
        'material, which makes classes easier to tell apart (default: %(default)s)',
    )
    parser.add_argument(
        '--clutter', type=int, default=MAX_CLUTTER, help='most things behind the shapes (default: %(default)s)'
    )
    parser.add_argument(
        '--shape-size',
        type=float,
        nargs=2,
        default=(0.1, 0.36),
        metavar=('MIN', 'MAX'),
        help="side of shapes in scenes as a share of the image's shorter side (default: 0.1 0.36)",
    )
    parser.add_argument('--workers', type=int, default=num_cores(), help='processes (default: %(default)s)')
    return parser.parse_args(argv)


def show_progress(finished: Iterator[None], total: int) -> Iterator[None]:
    """Shows a bar."""
    return iter(tqdm(finished, total=total, unit='image', smoothing=0.05))


def run(args: argparse.Namespace) -> None:
    """Draws the data set."""
    height, width = args.size
    settings = ShapeSettings(
        height,
        width,
        args.seed,
        args.train,
        args.val,
        args.train_per_class,
        args.val_per_class,
        args.plain,
        args.typical,
        args.clutter,
        *args.shape_size,
    )
    write_shapes(args.out, settings, args.workers, show_progress)
    print(f'{args.out}: ' + ', '.join(f'{count} {part}' for part, count in settings.counts().items() if count))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
