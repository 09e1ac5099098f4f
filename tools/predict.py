"""Predicts for images and shows it: boxes, masks and labels, coloured classes, or the five most probable classes; JSON.

Run:  python tools/predict.py CONFIG CKPT photos/ --out predictions
      python tools/predict.py CONFIG CKPT a.jpg 'more/**/*.png' --out predictions --score-thr 0.5

Written into --out as they come: overlays/*.png, a line for each image in predictions.jsonl and, for segmentation,
label_maps/*.png (0 = first class); at the end, or when interrupted, predictions.json. An image that cannot be read or
fails is noted there and the run goes on, with exit code 1. --resume leaves out images that have a result; without it a
run begins anew. In Python: addp_backbone.predict.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from command_line import FAILED, OK, make_parser, print_error, run_command

from mmengine.config import DictAction
from tqdm import tqdm

from addp_backbone.predict.predictor import DEFAULT_SCORE_THR, Predictor
from addp_backbone.predict.run import DEFAULT_FORMATS, FORMATS, iterate_predictions
from addp_backbone.predict.sources import find_images


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
    parser.add_argument(
        '--format',
        nargs='+',
        choices=FORMATS,
        default=list(DEFAULT_FORMATS),
        help="png: overlays and label maps; coco: coco_results.json with the data set's ids; csv: predictions.csv; "
        'predictions.json is always written (default: json png)',
    )
    parser.add_argument('--resume', action='store_true', help='go on with an interrupted run: keep what it wrote')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ... (default: the first GPU, or the CPU)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='K=V', help='replaces values of the config'
    )
    args = parser.parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        parser.error(f'--score-thr must lie between 0 and 1, got {args.score_thr}')
    return args


def show_progress(paths: Iterable[Path], total: int) -> Iterable[Path]:
    """Shows a bar."""
    return tqdm(paths, total=total, unit='image')


def run(args: argparse.Namespace) -> int:
    """Predicts; returns 1 if an image has no result."""
    num_found = len(find_images(args.images, args.out))  # before the model is built
    predictor = Predictor(args.config, args.checkpoint, args.score_thr, args.device, args.cfg_options)
    num_done = num_failed = num_capped = 0
    records = iterate_predictions(predictor, args.images, args.out, args.resume, show_progress, args.format)
    with closing(records):  # writes predictions.json, also when interrupted
        for record in records:
            num_done += 1
            num_capped += 'max_per_img' in record
            if 'error' in record:
                num_failed += 1
                print_error(f'{record["error"]}; left out')
    kept = f' ({num_found - num_done} of an earlier run)' if num_found > num_done else ''
    print(f'{num_found - num_failed} of {num_found} images{kept}: {args.out}')
    if num_capped:
        print(
            f'{num_capped} images reached max_per_img={predictor.max_per_img}, so objects may be missing: raise '
            '--score-thr, or --cfg-options model.test_cfg.rcnn.max_per_img=N (of one-stage detectors: '
            'model.test_cfg.max_per_img)'
        )
    return FAILED if num_failed else OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
