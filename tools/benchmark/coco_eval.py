"""Time of COCO's box and mask evaluation, from detections to the twelve numbers, against pycocotools.

    python -m tools.benchmark.coco_eval            # 1,000 images of 98 detections: boxes, masks, both

Ground truth and detections are made up: outlines of 8 to 180 px radius in 640 x 480 px images, 7 objects an image of 3
of 80 classes, 2 % crowds; 4 of 10 detections are shifted objects, the others lie anywhere. faster-coco-eval alone is
measured, too (in the notes).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import faster_coco_eval
import numpy as np
from pycocotools import mask as mask_codec

from tools.benchmark.pairs import BenchmarkRow, Call, Measured, add_arguments, difference, measure, print_row
from tools.command_line import make_parser, run_command

HEIGHT_PX, WIDTH_PX = 480, 640
NUM_CLASSES, NUM_OBJECTS = 80, 7
KINDS = dict(bbox='boxes', segm='masks')
GOAL = 5.0


@dataclass(frozen=True)
class Job:
    """What to evaluate: ``kind`` is ``'bbox'`` or ``'segm'``, ``num_detections`` are an image's."""

    kind: str
    num_images: int = 1000
    num_detections: int = 98


def make_results(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO annotation file's content and detections with box and mask."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    detections = []
    for image_id in range(1, job.num_images + 1):
        classes = rng.integers(1, NUM_CLASSES + 1, 3)
        objects = [(_random_ellipse(rng), int(rng.choice(classes))) for _ in range(NUM_OBJECTS)]
        for ellipse, category in objects:
            region = _region(rng, ellipse)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=category,
                    iscrowd=int(rng.random() < 0.02),
                    area=float(mask_codec.area(region['segmentation'])),
                    **region,
                )
            )
        for _ in range(job.num_detections):
            ellipse, category = objects[int(rng.integers(NUM_OBJECTS))]
            if rng.random() < 0.6:
                ellipse = _random_ellipse(rng)
            ellipse = ellipse + rng.normal(size=4) * (4, 4, 1, 1)
            if rng.random() < 0.4:
                category = int(rng.integers(1, NUM_CLASSES + 1))
            detections.append(
                dict(image_id=image_id, category_id=category, score=float(rng.random()), **_region(rng, ellipse))
            )
    images = [dict(id=i, file_name=f'{i}.jpg', height=HEIGHT_PX, width=WIDTH_PX) for i in range(1, job.num_images + 1)]
    categories = [dict(id=i, name=str(i)) for i in range(1, NUM_CLASSES + 1)]
    return dict(images=images, annotations=annotations, categories=categories), detections


def _random_ellipse(rng: np.random.Generator) -> np.ndarray:
    """Centre x, y and radii in pixels; small ones are as frequent as large ones."""
    radius = np.exp(rng.uniform(np.log(8), np.log(180)))
    return np.array([rng.uniform(0, WIDTH_PX), rng.uniform(0, HEIGHT_PX), *(radius * rng.uniform(0.6, 1.4, 2))])


def _region(rng: np.random.Generator, ellipse: np.ndarray) -> dict[str, Any]:
    """Box and mask of a ragged ellipse."""
    angles = np.linspace(0, 2 * np.pi, int(rng.integers(12, 40)), endpoint=False)
    ragged = 1 + 0.15 * rng.standard_normal(len(angles))
    x, y = (ellipse[:2, None] + ellipse[2:, None] * ragged * (np.cos(angles), np.sin(angles))).clip(
        0, [[WIDTH_PX], [HEIGHT_PX]]
    )
    (rle,) = mask_codec.frPyObjects([np.stack((x, y), axis=1).reshape(-1).tolist()], HEIGHT_PX, WIDTH_PX)
    return dict(
        bbox=mask_codec.toBbox(rle).tolist(), segmentation=dict(size=rle['size'], counts=rle['counts'].decode())
    )


def prepare(job: Job, who: str) -> Call:
    """Side: ``'ours'``, ``'pycocotools'`` or ``'faster'``."""
    annotations, detections = make_results(job)
    unused = 'bbox' if job.kind == 'segm' else 'segmentation'
    silence = io.StringIO()
    with contextlib.redirect_stdout(silence):  # mmdet's import and pycocotools print
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        from addp_backbone.detection.coco_metric import CocoEvaluation

        truth = faster_coco_eval.COCO() if who == 'faster' else COCO()
        truth.dataset = annotations
        truth.createIndex()

    def call() -> list[float]:
        found = [
            {key: value for key, value in detection.items() if key != unused} for detection in detections
        ]  # loadRes writes into them
        with contextlib.redirect_stdout(silence):
            if who == 'ours':
                evaluation = CocoEvaluation(truth, found, job.kind)
            else:
                evaluation = (faster_coco_eval.COCOeval_faster if who == 'faster' else COCOeval)(
                    truth, truth.loadRes(found), job.kind
                )
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return [float(value) for value in evaluation.stats[:12]]

    return call


def make_row(name: str, job: Job, kinds: Sequence[dict[str, Measured]], threads: int) -> BenchmarkRow:
    """A row of one kind, or of several added up."""
    times = {who: sum(kind[who].time_s for kind in kinds) for who in kinds[0]}
    memory = {who: max(kind[who].memory_gb for kind in kinds) for who in kinds[0]}
    return BenchmarkRow(
        row=f'COCO evaluation, {job.num_images} images x {job.num_detections} detections, {name}',
        ours=job.num_images / times['ours'],
        peer=job.num_images / times['pycocotools'],
        unit='images/s',
        ratio=times['pycocotools'] / times['ours'],
        goal=f'>= {GOAL:g}',
        ours_memory_gb=memory['ours'],
        peer_memory_gb=memory['pycocotools'],
        threads=threads,
        difference=max(difference(kind['ours'].result, kind['pycocotools'].result) for kind in kinds),
        note=f'peer: pycocotools; faster-coco-eval alone {times["pycocotools"] / times["faster"]:.2f} x',
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    add_arguments(parser)
    parser.set_defaults(threads=1)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measures and prints."""
    sizes = dict(num_images=3, num_detections=5) if args.smoke else {}
    measured = []
    for kind, name in KINDS.items():
        job = Job(kind, **sizes)
        measured.append(
            measure(
                {who: partial(prepare, job, who) for who in ('ours', 'pycocotools', 'faster')}, args.pairs, args.threads
            )
        )
        print_row(make_row(name, job, measured[-1:], args.threads), args.json)
    print_row(make_row('boxes + masks', job, measured, args.threads), args.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
