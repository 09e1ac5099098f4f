"""Predicts for images and shows it: boxes, masks and labels, coloured classes, or the five most probable classes; JSON.

Run:  python tools/predict.py CONFIG CKPT photos/ --out predictions
      python tools/predict.py CONFIG CKPT a.jpg 'more/**/*.png' --out predictions --score-thr 0.5
      python tools/predict.py CONFIG CKPT drive.mp4 --every 30 --out predictions
      python tools/predict.py CONFIG CKPT https://HOST/a.jpg --allow-urls --out predictions
      python tools/predict.py CONFIG CKPT aerial.tif --tile-size 1024 --out predictions

Written into --out as they come: overlays/*.png, a line for each image in predictions.jsonl and, for segmentation,
label_maps/*.png (0 = first class), for masks of objects instance_maps/*.png (0 = none, k = object k of the JSON); at
the end, or when interrupted, predictions.json. Frames of a video have their number and time. An image that cannot be
read or fails is noted there and the run goes on, with exit code 1. --resume leaves out images that have a result;
without it a run begins anew. In Python: addp_backbone.predict.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from command_line import FAILED, OK, make_parser, print_error, run_command

from tqdm import tqdm

from addp_backbone.predict.inputs import Frame, find_inputs
from addp_backbone.predict.predictor import DEFAULT_SCORE_THR, Predictor
from addp_backbone.predict.run import DEFAULT_FORMATS, FORMATS, iterate_predictions
from addp_backbone.predict.tiles import Tiles
from addp_backbone.predict.videos import without_password
from addp_backbone.runtime.option_parsing import ConfigOptions


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('config', metavar='CONFIG', help='config file of the training run')
    parser.add_argument('checkpoint', metavar='CKPT', help='its checkpoint')
    parser.add_argument(
        'images', nargs='+', metavar='IMAGES', help='files, folders, glob patterns, videos, camera:0, URLs'
    )
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
        help="png: overlays, label and instance maps; coco: coco_results.json with the data set's ids; csv: "
        'predictions.csv; labelme: a file for labelme each; predictions.json is always written (default: json png)',
    )
    parser.add_argument(
        '--every', type=int, default=1, metavar='N', help='of videos every N-th frame (default: %(default)s)'
    )
    parser.add_argument('--max-frames', type=int, metavar='N', help='of each video or stream at most N frames')
    parser.add_argument('--allow-urls', action='store_true', help='fetch URLs of http and https, and open streams')
    parser.add_argument('--tile-size', type=int, metavar='PX', help='cut larger images into tiles of this side')
    parser.add_argument(
        '--tile-overlap', type=float, default=0.2, metavar='SHARE', help='of a tile, 0 to 0.5 (default: %(default)s)'
    )
    parser.add_argument('--resume', action='store_true', help='go on with an interrupted run: keep what it wrote')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ... (default: the first GPU, or the CPU)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='K=V', help='replaces values of the config'
    )
    args = parser.parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        parser.error(f'--score-thr must lie between 0 and 1, got {args.score_thr}')
    return args


def show_progress(frames: Iterable[Frame], total: int) -> Iterable[Frame]:
    """Shows a bar; the length of streams is not known."""
    return tqdm(frames, total=total or None, unit='image')


def run(args: argparse.Namespace) -> int:
    """Predicts; returns 1 if an image has no result."""
    tiles = None if args.tile_size is None else Tiles(args.tile_size, args.tile_overlap)
    video: dict[str, Any] = dict(every=args.every, max_frames=args.max_frames)
    inputs = find_inputs(args.images, args.out, allow_urls=args.allow_urls, **video)  # before the model is built
    predictor = Predictor(
        args.config, args.checkpoint, args.score_thr, args.device, args.cfg_options, tiles, args.allow_urls
    )
    num_found = len(inputs.names) - len(inputs.videos)
    videos = {without_password(source) for source in inputs.videos}
    num_done = num_failed = num_capped = 0
    records = iterate_predictions(predictor, args.images, args.out, args.resume, show_progress, args.format, **video)
    with closing(records):  # writes predictions.json, also when interrupted
        for record in records:
            num_done += 1
            num_found += record['file_name'] in videos
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
