"""Images a second and core of the detection training pipeline with masks, against mmdet's steps for the same augmentation.

    python -m tools.benchmark.lsj                                                           # on generated shapes, JPEG, 640 x 480 px
    python -m tools.benchmark.lsj --annotations data/coco/annotations/instances_train2017.json --images data/coco/train2017

Both read the same images with the same draws and give the same tensors, boxes and masks; for the ratio, ours builds a
bitmap of the whole crop for every object, as mmdet's do. The note has the speed without, which is what a data worker
does. Single process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from addp_backbone.datasets.shapes.writer import ShapeSettings, write_shapes
from tools.benchmark.pairs import BenchmarkRow, Call, add_arguments, difference, measure, print_row
from tools.command_line import make_parser, run_command

SIDE_PX = 1024
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Job:
    """What to read.

    Attributes:
        annotations: COCO file.
        images: Folder of its images.
        num_images: Images a call.
        side_px: Side of the crop.
    """

    annotations: Path
    images: Path
    num_images: int
    side_px: int = SIDE_PX


def prepare_ours(job: Job, as_bitmaps: bool) -> Call:
    """Side: the project's step."""
    size = (job.side_px, job.side_px)
    return _make_call(
        job, [dict(type='LargeScaleJitter', scale=size, ratio_range=(0.1, 2.0), crop_size=size)], as_bitmaps
    )


def prepare_peer(job: Job) -> Call:
    """Side: mmdet's steps."""
    size = (job.side_px, job.side_px)
    return _make_call(
        job,
        [
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomResize', scale=size, ratio_range=(0.1, 2.0), keep_ratio=True),
            dict(
                type='RandomCrop', crop_type='absolute', crop_size=size, recompute_bbox=True, allow_negative_crop=True
            ),
            dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2), keep_empty=False),
        ],
        as_bitmaps=False,
    )


def _make_call(job: Job, steps: list[dict], as_bitmaps: bool) -> Call:
    """A call goes through the first images; what it returns sums images, boxes and masks up."""
    cv2.setNumThreads(torch.get_num_threads())
    categories = json.loads(job.annotations.read_text(encoding='utf-8'))['categories']
    with contextlib.redirect_stdout(io.StringIO()):  # mmdet's import and pycocotools print
        from mmdet.datasets import CocoDataset
        from mmengine.registry import init_default_scope

        init_default_scope('mmdet')
        data = CocoDataset(
            ann_file=str(job.annotations),
            data_prefix=dict(img=str(job.images)),
            filter_cfg=dict(filter_empty_gt=True),
            metainfo=dict(classes=tuple(category['name'] for category in categories)),
            pipeline=[dict(type='LoadImageFromFile'), *steps, dict(type='PackDetInputs')],
        )
    turns = iter(range(10**9))

    def call() -> list[float]:
        np.random.seed(next(turns))
        result = []
        for index in range(job.num_images):
            sample = data[index % len(data)]
            objects = sample['data_samples'].gt_instances
            masks = objects.masks.masks if as_bitmaps else objects.masks
            result += [
                float(sample['inputs'][:, ::16, ::16].sum()),
                float(objects.bboxes.tensor.sum()),
                float(len(masks)),
            ]
        return result

    return call


def _store_as_jpeg(annotations: Path, images: Path) -> None:
    """Makes JPEGs of generated images, as COCO's are: decoding a PNG takes either side three times as long and would hide the rest."""
    found = json.loads(annotations.read_text(encoding='utf-8'))
    for image in found['images']:
        source = images / image['file_name']
        image['file_name'] = str(Path(image['file_name']).with_suffix('.jpg'))
        pixels = cv2.imread(str(source))
        assert pixels is not None, source
        cv2.imwrite(str(images / image['file_name']), pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        source.unlink()
    annotations.write_text(json.dumps(found), encoding='utf-8')


def measure_row(job: Job, pairs: int, threads: int) -> BenchmarkRow:
    """Measures the row."""
    sides = dict(
        ours=partial(prepare_ours, job, True), boxed=partial(prepare_ours, job, False), peer=partial(prepare_peer, job)
    )
    measured = measure(sides, pairs, threads)
    speeds = {name: job.num_images / side.time_s for name, side in measured.items()}
    ours, peer = measured['ours'], measured['peer']
    return BenchmarkRow(
        row=f'LSJ training pipeline with masks, {job.side_px} px',
        ours=speeds['ours'],
        peer=speeds['peer'],
        unit='images/s',
        ratio=speeds['ours'] / speeds['peer'],
        goal='>= 2',
        ours_memory_gb=ours.memory_gb,
        peer_memory_gb=peer.memory_gb,
        threads=threads,
        difference=difference(ours.result, peer.result),
        note=f"peer: mmdet's steps; masks kept in their boxes: {speeds['boxed']:.3g} images/s, {speeds['boxed'] / speeds['peer']:.2f} x",
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        '--annotations', type=Path, metavar='JSON', help='COCO instances (default: shapes are generated)'
    )
    parser.add_argument('--images', type=Path, metavar='DIR', help='folder of its images')
    parser.add_argument('--num-images', type=int, default=100, metavar='N', help='images a call (default: %(default)s)')
    add_arguments(parser)
    parser.set_defaults(threads=1)
    args = parser.parse_args(argv)
    if (args.annotations is None) != (args.images is None):
        parser.error('--annotations and --images go together')
    return args


def run(args: argparse.Namespace) -> None:
    """Measures and prints."""
    num_images = 4 if args.smoke else args.num_images
    with tempfile.TemporaryDirectory() as folder:
        if args.annotations is None:
            height, width = (48, 64) if args.smoke else (480, 640)
            write_shapes(Path(folder) / 'shapes', ShapeSettings(height, width, train_scenes=num_images, val_scenes=0))
            args.annotations, args.images = (
                Path(folder) / 'shapes' / name for name in ('instances_train.json', 'images/train')
            )
            _store_as_jpeg(args.annotations, args.images)
        print_row(
            measure_row(
                Job(args.annotations, args.images, num_images, 128 if args.smoke else SIDE_PX), args.pairs, args.threads
            ),
            args.json,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
