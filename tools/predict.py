"""Predicts for images and shows it: boxes, masks and labels, coloured classes, or the five most probable classes; JSON.

Run:  python tools/predict.py CONFIG CKPT photos/ --out predictions
      python tools/predict.py CONFIG CKPT a.jpg 'more/**/*.png' --out predictions --score-thr 0.5

Written into --out: overlays/*.png, predictions.json and, for segmentation, label_maps/*.png (0 = first class). Images
that cannot be read are reported and left out, with exit code 1. In Python:
addp_backbone.predict.predictor.predict_images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from command_line import FAILED, OK, make_parser, print_error, run_command

from tqdm import tqdm

from addp_backbone.predict.predictor import DEFAULT_SCORE_THR, predict_images


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('config', metavar='CONFIG', help='config file of the training run')
    parser.add_argument('checkpoint', metavar='CKPT', help='its checkpoint')
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files, folders or glob patterns')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder for the results')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=DEFAULT_SCORE_THR,
        metavar='P',
        help='leave out detections below (default: %(default)s)',
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ... (default: the first GPU, or the CPU)')
    args = parser.parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        parser.error(f'--score-thr must lie between 0 and 1, got {args.score_thr}')
    return args


def show_progress(paths: Iterable[Path], total: int) -> Iterable[Path]:
    """Shows a bar."""
    return tqdm(paths, total=total, unit='image')


def run(args: argparse.Namespace) -> int:
    """Predicts; returns 1 if an image was left out."""
    records = predict_images(
        args.config, args.checkpoint, args.images, args.out, args.score_thr, args.device, show_progress
    )
    skipped = [record for record in records if 'error' in record]
    for record in skipped:
        print_error(f'{record["error"]}; left out')
    print(f'{len(records) - len(skipped)} of {len(records)} images: {args.out}')
    return FAILED if skipped else OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
