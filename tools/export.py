"""Writes a trained model as an ONNX file, with what its inputs and outputs mean, and compares it with the model.

Run:  python tools/export.py CONFIG CKPT cars.onnx --check photos/*.jpg
      python tools/export.py CONFIG CKPT features.onnx --part backbone --size 480 640

A detector's file takes images and their sizes and returns boxes, scores, labels, counts and masks; a segmentor's takes
images and returns logits and a class map. Only standard operators are used. --check runs both on photographs, prints
the largest differences, and exits with 1 if one is too large; --evaluate tests the file on the config's test data.
--precision fp16|int8 makes a smaller file, whose loss on --check's photographs, and --evaluate's metrics, are printed
and written into its metadata. docs/export.md shows how the file is used. In Python:
addp_backbone.export.command.export_model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import FAILED, OK, make_parser, print_error, run_command

from addp_backbone.export.command import check_model, evaluate_model, export_model
from addp_backbone.export.onnx_model import OnnxModel
from addp_backbone.export.plan import PARTS
from addp_backbone.export.precision import PRECISIONS, annotate


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('config', metavar='CONFIG', help='config file of the training run')
    parser.add_argument('checkpoint', metavar='CKPT', help='its checkpoint, or the work dir of the run')
    parser.add_argument('out', metavar='OUT.onnx', type=Path, help='the file')
    parser.add_argument(
        '--part', choices=PARTS, default='model', help='what is exported; neck = backbone and neck (default: model)'
    )
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='fixed size of the inputs in pixels (default: any size, where the model allows it)',
    )
    parser.add_argument('--check', nargs='+', default=[], metavar='IMAGES', help='photographs to compare on')
    parser.add_argument(
        '--evaluate', action='store_true', help="AP or mIoU of the file on the config's test data, as tools/test.py"
    )
    parser.add_argument(
        '--precision',
        choices=PRECISIONS,
        default='fp32',
        help='fp16: weights in 16 bits; int8: products with weights in 8 bits; both need --check (default: fp32)',
    )
    args = parser.parse_args(argv)
    if args.precision != 'fp32' and not args.check:
        parser.error(f'--precision {args.precision} changes the results: give --check photographs, to measure the loss')
    if args.evaluate and args.part != 'model':
        parser.error(f'--evaluate is for the whole model, got --part {args.part}')
    if args.out.suffix != '.onnx':
        parser.error(f'the file must end in .onnx, got {args.out}')
    return args


def run(args: argparse.Namespace) -> int:
    """Exports, and compares; returns 1 if a difference is too large."""
    plan = export_model(args.config, args.checkpoint, args.out, args.part, args.size, args.check, args.precision)
    print(f'{args.out}: inputs {", ".join(plan.inputs)}; outputs {", ".join(plan.outputs)}; {plan.sizes}')
    if args.part == 'model' and None in (plan.metadata['longest'], plan.metadata['mean']):
        print(
            'note: the metadata lack resizing or normalisation: the test pipeline has no Resize with keep_ratio=True, '
            'or the data preprocessor no mean. Programs that prepare photographs by the metadata cannot use the file',
            file=sys.stderr,
        )
    if args.precision != 'fp32':
        print_loss(args)
        return OK
    checked = too_large = 0
    for path, differences in check_model(args.config, args.checkpoint, args.out, args.check):
        print(f'{path}: {"; ".join(map(str, differences))}')
        checked += 1
        too_large += any(difference.too_large for difference in differences)
    if args.evaluate:
        for name, value in evaluate_model(args.config, args.checkpoint, args.out).items():
            print(f'{name} {value:.4f}')
    if too_large:
        print_error(f'the file differs from the model on {too_large} of {checked} images')
    return FAILED if too_large else OK


def print_loss(args: argparse.Namespace) -> None:
    """Prints what a precision costs; notes the metrics in the file."""
    loss = OnnxModel(args.out).description['loss']
    print(f'{args.precision}, largest differences to the model on {loss["images"]} images:')
    for one in loss['differences']:
        print(f'  {one["name"]} {one["value"]:.2g} {one["unit"]}')
    if args.evaluate:
        metrics = evaluate_model(args.config, args.checkpoint, args.out)
        annotate(args.out, dict(metrics=metrics))
        for name, value in metrics.items():
            print(f'{name} {value:.4f}')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
