"""Memory of a data-loader worker for detection, with few and with many images in the annotation file.

    python -m tools.benchmark.worker_memory            # 1,000 and 10,000 images

A worker is a copy of the process that read the annotations, and shares its memory until it writes. Objects of Python
are written to when they are only looked at (their reference counts), so that a list of annotations would be copied bit
by bit. mmengine keeps annotations as one array of bytes instead; this measures whether nothing else grows. Memory is
what the worker does not share (Linux: smaps_rollup) after samples from all over the data set. Ours in the row is the
long annotation file, the peer the short one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Subset

from tools.benchmark.pairs import BenchmarkRow, add_arguments, print_row
from tools.command_line import make_parser, run_command

NUM_OBJECTS, NUM_CORNERS = 7, 20  # of an image, of a polygon
HEIGHT_PX, WIDTH_PX = 48, 64  # small: memory of annotations is asked for
NUM_SAMPLES = 3000
BATCH_SIZE = 20  # samples between two looks at the memory, which take time
GOAL = 1.1


def write_annotations(path: Path, num_images: int) -> None:
    """A COCO file whose images are all the same small file."""
    rng = np.random.default_rng(0)
    annotations = []
    for number in range(num_images * NUM_OBJECTS):
        corners = rng.uniform(0, HEIGHT_PX, (NUM_CORNERS, 2)).round(2)
        (x, y), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        annotations.append(
            dict(
                id=number + 1,
                image_id=number // NUM_OBJECTS + 1,
                category_id=1,
                iscrowd=0,
                area=1000.0,
                bbox=[x, y, right - x, bottom - y],
                segmentation=[corners.reshape(-1).tolist()],
            )
        )
    images = [dict(id=i + 1, file_name='grey.jpg', height=HEIGHT_PX, width=WIDTH_PX) for i in range(num_images)]
    path.write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=[dict(id=1, name='thing')])),
        encoding='utf-8',
    )


def worker_memory_gb(annotations: Path, num_samples: int, serialize: bool = True) -> float:
    """What a worker has of its own, in 10^9 bytes, after samples from all over the data set."""
    size = (WIDTH_PX, WIDTH_PX)
    with contextlib.redirect_stdout(io.StringIO()):
        from mmdet.datasets import CocoDataset
        from mmengine.registry import init_default_scope

        init_default_scope('mmdet')
        data = CocoDataset(
            ann_file=str(annotations),
            data_prefix=dict(img=str(annotations.parent)),
            metainfo=dict(classes=('thing',)),
            serialize_data=serialize,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LargeScaleJitter', scale=size, ratio_range=(0.1, 2.0), crop_size=size),
                dict(type='PackDetInputs'),
            ],
        )
    data[0]  # what the first sample imports and allocates once is the parent's then
    places = np.linspace(0, len(data) - 1, num_samples).astype(int).tolist()
    *_, last = DataLoader(
        Subset(data, places),
        batch_size=BATCH_SIZE,
        num_workers=1,
        collate_fn=_own_memory_gb,
        multiprocessing_context='fork',
    )
    return last


def _own_memory_gb(batch: list[Any]) -> float:
    """Stands in for collation, which runs in the worker."""
    kilobytes = [
        int(line.split()[1])
        for line in Path('/proc/self/smaps_rollup').read_text().splitlines()
        if line.startswith('Private')
    ]
    return sum(kilobytes) * 1024 / 1e9


def measure_row(lengths: tuple[int, int], num_samples: int) -> BenchmarkRow:
    """Measures the row."""
    with tempfile.TemporaryDirectory() as folder:
        cv2.imwrite(f'{folder}/grey.jpg', np.full((HEIGHT_PX, WIDTH_PX, 3), 128, np.uint8))
        memory = {}
        for length in lengths:
            path = Path(folder) / f'{length}.json'
            write_annotations(path, length)
            memory[length] = worker_memory_gb(path, num_samples)
        as_list = worker_memory_gb(path, num_samples, serialize=False)
    short, long = (memory[length] for length in lengths)
    return BenchmarkRow(
        row=f'memory of a data-loader worker, {lengths[1]} images / {lengths[0]} images',
        ours=long,
        peer=short,
        unit='GB',
        ratio=long / short,
        goal=f'<= {GOAL}',
        ours_memory_gb=long,
        peer_memory_gb=short,
        note='not shared with the process that read the annotations; as a list of dicts they would take '
        f'{as_list:.2g} GB',
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    add_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measures and prints."""
    print_row(measure_row((20, 60), 20) if args.smoke else measure_row((1000, 10000), NUM_SAMPLES), args.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
