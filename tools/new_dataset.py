"""Checks your own data set and writes the short config that trains on it.

Detection, from COCO JSON files and image folders (boxes without masks choose Faster R-CNN):

    python tools/new_dataset.py det --out my_cars.py --train-json train.json --train-images images/train
        --val-json val.json --val-images images/val

or from Pascal VOC, YOLO, labelme, Label Studio or CVAT, written as COCO JSON beside the config:

    python tools/new_dataset.py det --out my_cells.py --train-labels Annotations --train-images JPEGImages
        --train-list ImageSets/Main/train.txt --val-labels Annotations --val-images JPEGImages
        --val-list ImageSets/Main/val.txt

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

from addp_backbone.datasets.coco import DetectionSplit, check_files
from addp_backbone.datasets.coco_file import CocoFile
from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.formats.detect import FORMATS, read_annotations, read_class_names, read_split_list
from addp_backbone.datasets.leaf import detection_leaf, mended_splits, segmentation_leaf, write_leaf
from addp_backbone.datasets.mask_conversion import (
    BINARY,
    COLOURS,
    MaskConversion,
    convert_masks,
    png_suffix,
    read_mapping,
)
from addp_backbone.datasets.mask_overlays import write_overlays
from addp_backbone.datasets.mask_values import VOID_255, VOID_ZERO
from addp_backbone.datasets.masks import SegmentationSplit, check_segmentation, read_classes, sample_pairs
from addp_backbone.datasets.palette import class_palette
from addp_backbone.datasets.protocols import AUTO, PROTOCOLS, protocol_hint
from addp_backbone.datasets.schedule import LeafOptions, schedule_hint
from addp_backbone.files.atomic import replace_file
from addp_backbone.runtime.environment import num_cores

REPOSITORY = Path(__file__).resolve().parents[1]
SPLIT_NOTES = {'train': 'training', 'val': 'validation (default: the training data again)'}
VOID_LAST, VOID_BACKGROUND = 'last', 'background'
NUM_OVERLAYS = 3


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    tasks = parser.add_subparsers(dest='task', required=True, metavar='{det,seg}')
    detection = tasks.add_parser('det', help='boxes, with or without masks')
    add_common_arguments(detection, 'det_configs/addp_base_maskrcnn.py')
    add_detection_arguments(detection)
    segmentation = tasks.add_parser('seg', help='a class for every pixel')
    add_common_arguments(segmentation, 'seg_configs/addp_base_upernet.py')
    add_segmentation_arguments(segmentation)
    args = parser.parse_args(argv)
    labels = args.val_json if args.task == 'det' else args.val_masks
    if (args.val_images is None) != (labels is None):
        parser.error('--val-images and --val-json or --val-masks belong together')
    if args.patience is not None and (args.patience < 1 or args.val_images is None):
        parser.error('--patience wants 1 or more, and validation data')
    if args.out.suffix != '.py' or '.' in args.out.stem:
        parser.error(f'--out must be a Python file with no other dot in its name, got {args.out}')
    if args.out.exists() and not args.force:
        parser.error(f'{args.out} exists: choose another name, or --force to replace it')
    return args


def add_common_arguments(parser: argparse.ArgumentParser, base: str) -> None:
    """Adds what both tasks have."""
    for split, note in SPLIT_NOTES.items():
        parser.add_argument(
            f'--{split}-images',
            type=Path,
            required=split == 'train',
            metavar='FOLDER',
            help=f'folder of images, {note}',
        )
    parser.add_argument('--out', type=Path, required=True, metavar='CONFIG.py', help='config to write')
    parser.add_argument(
        '--base', type=Path, default=REPOSITORY / base, help=f'config to inherit from (default: {base})'
    )
    parser.add_argument('--force', action='store_true', help='replace an existing config')
    parser.add_argument(
        '--max-findings', type=int, default=10, metavar='N', help='findings shown of each kind (default: 10; 0 = all)'
    )
    parser.add_argument(
        '--workers', type=int, default=num_cores(), help='threads that read images (default: %(default)s)'
    )
    parser.add_argument(
        '--protocol',
        choices=(AUTO, *PROTOCOLS),
        help='how much of the backbone is trained; auto: by the number of images (default: as in the base config)',
    )
    parser.add_argument(
        '--patience',
        type=int,
        metavar='N',
        help='stop training after N validations without a better result (default: never)',
    )


def add_detection_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what detection alone has."""
    for split, note in SPLIT_NOTES.items():
        parser.add_argument(
            f'--{split}-json',
            f'--{split}-labels',
            dest=f'{split}_json',
            type=Path,
            required=split == 'train',
            metavar='PATH',
            help=f'COCO JSON, or a file or folder of another format, {note}',
        )
        parser.add_argument(
            f'--{split}-list',
            type=Path,
            metavar='FILE',
            help='names of the images of the split, one a line (not for COCO; default: all in the folder)',
        )
    parser.add_argument(
        '--format', choices=('auto', *FORMATS), default='auto', help='of the annotations (default: by what is there)'
    )
    parser.add_argument(
        '--classes',
        type=Path,
        metavar='FILE',
        help="class names in the model's order, as text, JSON or data.yaml (default: those of the annotations)",
    )
    parser.add_argument('--box-only', action='store_true', help='ignore masks: train Faster R-CNN')


def add_segmentation_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what segmentation alone has."""
    for split, note in SPLIT_NOTES.items():
        parser.add_argument(
            f'--{split}-masks', type=Path, required=split == 'train', metavar='FOLDER', help=f'folder of masks, {note}'
        )
    parser.add_argument('--classes', type=Path, required=True, metavar='FILE', help='class names')
    parser.add_argument(
        '--void',
        choices=('auto', VOID_ZERO, VOID_255, VOID_LAST, VOID_BACKGROUND),
        default='auto',
        help='zero: 0 = void, classes from 1 (ADE20K); 255: 255 = void, classes from 0; last: the number after the '
        'last class = void; background: 0 = a class of its own that the list does not name (default: by the values)',
    )
    parser.add_argument('--mask-suffix', default='.png', help='how mask names end (default: %(default)s)')
    parser.add_argument(
        '--convert',
        choices=(BINARY, COLOURS),
        default='',
        help='write the masks anew beside the config: binary: 0 = first class, all else = second; colours: RGB values '
        "of the class list's palette",
    )
    parser.add_argument(
        '--map',
        nargs='+',
        default=[],
        metavar='OLD=NEW',
        help='write the masks anew beside the config with other values, e.g. 11=255 128=1; NEW may be void',
    )


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
    options = LeafOptions(
        args.out, args.base, validated=args.val_images is not None, patience=args.patience, protocol=args.protocol
    )
    return (compose_detection if args.task == 'det' else compose_segmentation)(args, options, findings)


def compose_detection(args: argparse.Namespace, options: LeafOptions, findings: Findings) -> Composed:
    """Checks a detection data set of any format and composes its leaf config."""
    splits = [DetectionSplit('train', args.train_json, args.train_images)]
    splits += [DetectionSplit('val', args.val_json, args.val_images)] if args.val_images else []
    lists = {'train': args.train_list, 'val': args.val_list}
    classes = read_class_names(args.classes) if args.classes else None
    files: dict[str, CocoFile] = {}
    for split in splits:
        names = read_split_list(lists[split.name]) if lists[split.name] else None
        coco = read_annotations(split.ann_file, split.image_dir, findings, args.format, classes, names)
        if coco is not None:
            files[split.name] = coco
            classes = classes or list(coco.categories.values())  # validation data are numbered as training data
    data = check_files(splits, files, findings, args.workers, args.box_only, show_progress)
    if findings.num_errors:
        return Composed('', list(data.classes), data.num_train_images)
    if not data.has_masks:
        print('no masks: Faster R-CNN is trained instead of Mask R-CNN')
    splits, mended = mended_splits(options.out, splits, data)
    return Composed(detection_leaf(options, splits, data), list(data.classes), data.num_train_images, mended)


def compose_segmentation(args: argparse.Namespace, options: LeafOptions, findings: Findings) -> Composed:
    """Checks a segmentation data set, converting its masks if that is asked for, and composes its leaf config."""
    classes, palette = read_classes(args.classes)
    splits = [SegmentationSplit('train', args.train_images, args.train_masks)]
    splits += [SegmentationSplit('val', args.val_images, args.val_masks)] if args.val_images else []
    void, suffix, mapping = args.void, args.mask_suffix, read_mapping(args.map)
    if void == VOID_BACKGROUND:
        void, classes = VOID_255, ['background', *classes]
        palette = [[0, 0, 0], *palette] if palette else None
    elif void == VOID_LAST:
        void, mapping = VOID_255, {len(classes): 255, **mapping}
    if args.convert == COLOURS and not palette:
        raise ValueError(
            f'--convert colours: {args.classes} has no palette; wanted {{"classes": [...], "palette": ...}}'
        )
    if args.convert or mapping:
        conversion = MaskConversion(args.convert, palette or (), mapping)
        folder = args.out.with_name(f'{args.out.stem}_masks')
        splits = convert_masks(splits, conversion, suffix, folder, findings, args.workers, show_progress)
        suffix, void = png_suffix(suffix), VOID_255 if void == 'auto' and args.convert else void
        print(f'written: {folder} (converted masks)')
    data = check_segmentation(splits, classes, findings, void, suffix, args.workers, show_progress)
    print('\n'.join(['', 'how the masks are read:', *data.table, '']))
    if findings.num_errors:
        return Composed('', classes, data.num_train_images)
    print(
        'void: 0 in the masks, classes count from 1'
        if data.void == VOID_ZERO
        else 'void: 255 in the masks, classes count from 0'
    )
    overlays = args.out.with_name(f'{args.out.stem}_overlays.png')
    pairs = sample_pairs(splits[0], data, NUM_OVERLAYS)
    write_overlays(pairs, classes, palette or class_palette(len(classes)), data.void, overlays)
    print(f'written: {overlays} (look at it: are the labels right?)')
    return Composed(segmentation_leaf(options, splits, classes, palette, data), classes, data.num_train_images)


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
    hint += '\n' + protocol_hint(config, composed.num_images, args.protocol)
    print(f'written: {args.out}\n{hint}\nnext: python tools/train.py {args.out}')
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
