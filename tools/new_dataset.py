"""Checks your own data set and writes the short config that trains on it.

Detection, from COCO JSON files and image folders (boxes without masks choose Faster R-CNN):

    python tools/new_dataset.py det --out my_cars.py --train-json train.json --train-images images/train
        --val-json val.json --val-images images/val

Segmentation, from image and mask folders and a class list (a text file with a name a line, or JSON):

    python tools/new_dataset.py seg --out my_streets.py --classes classes.txt --train-images images/train
        --train-masks masks/train --val-images images/val --val-masks masks/val

Exit code 1 and nothing written if the data has errors. Then: python tools/train.py my_cars.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command_line import FAILED, OK, make_parser, print_error, run_command

from tqdm import tqdm

from addp_backbone.datasets.coco import DetectionSplit, check_detection
from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.leaf import detection_leaf, mended_splits, segmentation_leaf, write_leaf
from addp_backbone.datasets.masks import VOID_255, VOID_ZERO, SegmentationSplit, check_segmentation, read_classes
from addp_backbone.datasets.schedule import LeafOptions, schedule_hint
from addp_backbone.files.atomic import replace_file
from addp_backbone.runtime.environment import num_cores

REPOSITORY = Path(__file__).resolve().parents[1]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    tasks = parser.add_subparsers(dest='task', required=True, metavar='{det,seg}')
    for task, base, second in (
        ('det', 'det_configs/addp_base_maskrcnn.py', 'json'),
        ('seg', 'seg_configs/addp_base_upernet.py', 'masks'),
    ):
        sub = tasks.add_parser(
            task, help={'det': 'boxes, with or without masks', 'seg': 'a class for every pixel'}[task]
        )
        for split in ('train', 'val'):
            note = 'training' if split == 'train' else 'validation (default: the training data again)'
            for kind in ('images', second):
                what = {'images': 'folder of images', 'json': 'COCO JSON', 'masks': 'folder of masks'}[kind]
                sub.add_argument(
                    f'--{split}-{kind}', type=Path, required=split == 'train', metavar='PATH', help=f'{what}, {note}'
                )
        sub.add_argument('--out', type=Path, required=True, metavar='CONFIG.py', help='config to write')
        sub.add_argument(
            '--base', type=Path, default=REPOSITORY / base, help=f'config to inherit from (default: {base})'
        )
        sub.add_argument('--force', action='store_true', help='replace an existing config')
        sub.add_argument(
            '--max-findings',
            type=int,
            default=10,
            metavar='N',
            help='findings shown of each kind (default: 10; 0 = all)',
        )
        sub.add_argument(
            '--workers', type=int, default=num_cores(), help='threads that read images (default: %(default)s)'
        )
        sub.add_argument(
            '--patience',
            type=int,
            metavar='N',
            help='stop training after N validations without a better result (default: never)',
        )
        if task == 'det':
            sub.add_argument('--box-only', action='store_true', help='ignore masks: train Faster R-CNN')
        else:
            sub.add_argument('--classes', type=Path, required=True, metavar='FILE', help='class names')
            sub.add_argument(
                '--void',
                choices=('auto', VOID_ZERO, VOID_255),
                default='auto',
                help='zero: 0 = void, classes from 1 (ADE20K); 255: 255 = void, classes from 0',
            )
            sub.add_argument('--mask-suffix', default='.png', help='how mask names end (default: %(default)s)')
    args = parser.parse_args(argv)
    if (args.val_images is None) != (getattr(args, f'val_{"json" if args.task == "det" else "masks"}') is None):
        parser.error('--val-images and --val-json or --val-masks belong together')
    if args.patience is not None and (args.patience < 1 or args.val_images is None):
        parser.error('--patience wants 1 or more, and validation data')
    if args.out.suffix != '.py' or '.' in args.out.stem:
        parser.error(f'--out must be a Python file with no other dot in its name, got {args.out}')
    if args.out.exists() and not args.force:
        parser.error(f'{args.out} exists: choose another name, or --force to replace it')
    return args


def show_progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    """Shows a bar."""
    return tqdm(items, total=total, unit='image', smoothing=0.05)


@dataclass(frozen=True)
class Composed:
    """A leaf config before it is written.

    Attributes:
        text: The config; empty if the data have errors.
        classes: Class names.
        num_images: Number of training images.
        files: Text of the annotation files to write beside the config.
    """

    text: str
    classes: list[str]
    num_images: int
    files: dict[Path, str] = field(default_factory=dict)


def compose(args: argparse.Namespace, findings: Findings) -> Composed:
    """Checks the data set and composes its leaf config."""
    options = LeafOptions(args.out, args.base, validated=args.val_images is not None, patience=args.patience)
    return (compose_detection if args.task == 'det' else compose_segmentation)(args, options, findings)


def compose_detection(args: argparse.Namespace, options: LeafOptions, findings: Findings) -> Composed:
    """Checks a detection data set and composes its leaf config."""
    splits = [DetectionSplit('train', args.train_json, args.train_images)]
    splits += [DetectionSplit('val', args.val_json, args.val_images)] if args.val_images else []
    data = check_detection(splits, findings, args.workers, args.box_only, show_progress)
    if not data.has_masks and not findings.num_errors:
        print('no masks: Faster R-CNN is trained instead of Mask R-CNN')
    if findings.num_errors:
        return Composed('', list(data.classes), data.num_train_images)
    splits, mended = mended_splits(options.out, splits, data)
    return Composed(detection_leaf(options, splits, data), list(data.classes), data.num_train_images, mended)


def compose_segmentation(args: argparse.Namespace, options: LeafOptions, findings: Findings) -> Composed:
    """Checks a segmentation data set and composes its leaf config."""
    classes, palette = read_classes(args.classes)
    splits = [SegmentationSplit('train', args.train_images, args.train_masks)]
    splits += [SegmentationSplit('val', args.val_images, args.val_masks)] if args.val_images else []
    data = check_segmentation(splits, classes, findings, args.void, args.mask_suffix, args.workers, show_progress)
    if not findings.num_errors:
        print(
            'void: 0 in the masks, classes count from 1'
            if data.void == VOID_ZERO
            else 'void: 255 in the masks, classes count from 0'
        )
    text = '' if findings.num_errors else segmentation_leaf(options, splits, classes, palette, data)
    return Composed(text, classes, data.num_train_images)


def run(args: argparse.Namespace) -> int:
    """Checks the data and writes the config; returns 1 if the data has errors."""
    findings = Findings()
    composed = compose(args, findings)
    for path, text in composed.files.items():
        replace_file(path, text)
        print(f'written: {path} (annotations as they are read)')
    config = write_leaf(args.out, composed.text, composed.classes) if composed.text else None
    if args.val_images is None:
        print(
            'no validation data given: the config validates on the training data, which tells nothing about new images'
        )
    print('\n'.join([*findings.histogram_lines(), '', *findings.lines(args.max_findings)]))
    print(f'{findings.num_errors} errors, {findings.num_warnings} warnings')
    if config is None:
        print_error(f'the data has errors, {args.out} is not written')
        return FAILED
    hint = schedule_hint(config.train_cfg, config.train_dataloader.batch_size, composed.num_images)
    print(f'written: {args.out}\n{hint}\nnext: python tools/train.py {args.out}')
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
