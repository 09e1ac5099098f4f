"""Makes the reference set of FID and IS from ImageNet's validation images: 256 px PNGs and a manifest.

    python tools/prepare_imagenet_val.py data/imagenet/val data/imagenet_val_256

SOURCE is flat or in class folders. A cut run goes on when started again; manifest.json is there once the set is
complete.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from command_line import make_parser, run_command

from tqdm import tqdm

from addp_backbone.runtime.environment import num_cores
from pretrain.evaluation.image_sets import MANIFEST_FILE, NUM_IMAGES, SIZE_PX
from pretrain.evaluation.reference_set import prepare_reference_set


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('source', type=Path, metavar='SOURCE', help="folder with ImageNet's validation images")
    parser.add_argument('out', type=Path, metavar='OUT', help='folder to write')
    parser.add_argument('--workers', type=int, default=num_cores(), help='processes (default: %(default)s)')
    parser.add_argument(
        '--size', type=int, default=SIZE_PX, metavar='PX', help='side; others than 256 are not the published protocol'
    )
    return parser.parse_args(argv)


def show_progress(finished: Iterable[str | None], total: int) -> Iterable[str | None]:
    """Shows a bar."""
    return tqdm(finished, total=total, unit='image')


def run(args: argparse.Namespace) -> None:
    """Makes the reference set."""
    manifest = prepare_reference_set(args.source, args.out, args.workers, show_progress, args.size)
    print(f'{args.out}: {manifest["num_images"]} images, {MANIFEST_FILE}')
    if manifest['num_images'] != NUM_IMAGES or args.size != SIZE_PX:
        print(f'note: the published protocol has {NUM_IMAGES} reference images of {SIZE_PX} px')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
