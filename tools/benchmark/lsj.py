r"""Images a second and core of the detection training pipeline with masks, against mmdet's for the same augmentation.

    python -m tools.benchmark.lsj        # on generated shapes, JPEG, 640 x 480 px
    python -m tools.benchmark.lsj --images data/coco/train2017 \
        --annotations data/coco/annotations/instances_train2017.json

Both read the same images with the same flips and sizes, each as in training: ours keeps polygons, antialiases and
crops as detectron2; mmdet's makes bitmaps, its default. The note has mmdet's speed with polygons
(``poly2mask=False``), too. Generated shapes are written as polygons, as COCO's objects are. Single process.
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
from pycocotools import mask as coco_masks

from addp_backbone.datasets.shapes.writer import ShapeSettings, write_shapes
from tools.benchmark.pairs import BenchmarkRow, Call, add_arguments, measure, print_row
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
        ratio_range: Of the size.
    """

    annotations: Path
    images: Path
    num_images: int
    side_px: int = SIDE_PX
    ratio_range: tuple[float, float] = (0.1, 2.0)


def prepare_ours(job: Job) -> Call:
    """Side: the project's step."""
    size = (job.side_px, job.side_px)
    return _make_call(
        job, [dict(type='LargeScaleJitter', scale=size, ratio_range=job.ratio_range, crop_size=size, min_box_px=1e-2)]
    )


def prepare_peer(job: Job, poly2mask: bool) -> Call:
    """Side: mmdet's steps, with bitmaps (its default) or polygons."""
    size = (job.side_px, job.side_px)
    return _make_call(
        job,
        [
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=poly2mask),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomResize', scale=size, ratio_range=job.ratio_range, keep_ratio=True),
            dict(
                type='RandomCrop', crop_type='absolute', crop_size=size, recompute_bbox=True, allow_negative_crop=True
            ),
            dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2), keep_empty=False),
        ],
    )


def _make_call(job: Job, steps: list[dict]) -> Call:
    """A call goes through the first images; what it returns sums images and boxes up and counts masks."""
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
        turn = next(turns)
        result = []
        for index in range(job.num_images):
            np.random.seed(turn * job.num_images + index)
            sample = data[index % len(data)]
            objects = sample['data_samples'].gt_instances
            result += [
                float(sample['inputs'][:, ::16, ::16].sum()),
                float(objects.bboxes.tensor.sum()),
                float(len(objects.masks)),
            ]
        return result

    return call


def store_like_coco(annotations: Path, images: Path) -> None:
    """Makes JPEGs of generated images and polygons of their masks.

    Decoding a PNG takes either side three times as long and would hide the rest.
    """
    found = json.loads(annotations.read_text(encoding='utf-8'))
    for image in found['images']:
        source = images / image['file_name']
        image['file_name'] = str(Path(image['file_name']).with_suffix('.jpg'))
        pixels = cv2.imread(str(source))
        assert pixels is not None, source
        cv2.imwrite(str(images / image['file_name']), pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        source.unlink()
    for annotation in found['annotations']:
        bitmap = np.ascontiguousarray(coco_masks.decode(annotation['segmentation']))
        outlines, _ = cv2.findContours(bitmap, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
        polygons = [outline.reshape(-1).tolist() for outline in outlines if len(outline) > 2]
        annotation['segmentation'] = polygons or annotation['segmentation']
    annotations.write_text(json.dumps(found), encoding='utf-8')


def measure_row(job: Job, pairs: int, threads: int) -> BenchmarkRow:
    """Measures the row."""
    sides = dict(
        ours=partial(prepare_ours, job),
        peer=partial(prepare_peer, job, poly2mask=True),
        polygons=partial(prepare_peer, job, poly2mask=False),
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
        note=f"peer: mmdet's steps with bitmaps; with polygons {speeds['polygons']:.3g} images/s, without antialiasing"
        f': ours is {speeds["ours"] / speeds["polygons"]:.2f} x; results differ by design (detectron2 against mmdet)',
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
            store_like_coco(args.annotations, args.images)
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
