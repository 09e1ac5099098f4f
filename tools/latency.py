"""Times a trained model: in torch, compiled, and as an ONNX file in onnxruntime; median and spread in one table.

Run:  python tools/latency.py CONFIG CKPT photo.jpg [--threads 1] [--repeats 20] [--precision int8]

The photograph goes through the config's test pipeline once; what is timed is the network with suppression and mask
heads, not reading and resizing. model.predict alone also brings masks or class maps to the photograph's size. The CPU
is used, and nothing else should run on it. The ONNX file is made for the occasion, and compiling takes minutes. In
Python: addp_backbone.export.latency.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from command_line import OK, make_parser, run_command

from addp_backbone.export.command import time_model
from addp_backbone.export.latency import format_table
from addp_backbone.export.precision import PRECISIONS


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('config', metavar='CONFIG', help='config file of the training run')
    parser.add_argument('checkpoint', metavar='CKPT', help='its checkpoint, or the work dir of the run')
    parser.add_argument('image', metavar='IMAGE', help='photograph')
    parser.add_argument('--threads', type=int, default=0, metavar='N', help='of the CPU (default: all cores)')
    parser.add_argument('--repeats', type=int, default=20, metavar='N', help='timed calls (default: %(default)s)')
    parser.add_argument('--size', nargs=2, type=int, metavar=('H', 'W'), help='fixed size of the inputs in pixels')
    parser.add_argument(
        '--precision',
        nargs='+',
        choices=PRECISIONS[1:],
        default=[],
        help='time these smaller files, too; tools/export.py tells what they cost',
    )
    args = parser.parse_args(argv)
    if args.repeats < 2 or args.threads < 0:
        parser.error(f'--repeats must be at least 2 and --threads at least 0, got {args.repeats} and {args.threads}')
    return args


def run(args: argparse.Namespace) -> int:
    """Times and prints the table."""
    shape, timings = time_model(
        args.config, args.checkpoint, args.image, args.size, args.threads, args.repeats, args.precision
    )
    print(f'input {tuple(shape)}, {args.threads or "all"} threads, {args.repeats} calls each')
    print(format_table(timings))
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
