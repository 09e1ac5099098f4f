r"""Measures FID and IS of generated images by torch-fidelity; KID, precision and recall as well.

    python tools/evaluate_generation.py GENERATED REFERENCE --out F.json \
        --inception-weights weights-inception-2015-12-05-6726825d.pth

GENERATED: a folder of tools/generate.py; its figures (grid.png, steps.png) do not count. REFERENCE: a folder of
tools/prepare_imagenet_val.py. Refuses what the protocol of the published figures excludes (JPEG references, mixed
sizes, other numbers than 50,000 images), unless --allow-protocol-mismatch, which the result then says.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import make_parser, run_command

from addp_backbone.files.atomic import replace_file
from pretrain.evaluation.fidelity import INCEPTION, METRICS, measure
from pretrain.evaluation.image_sets import ImageSet


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('generated', type=Path, metavar='GENERATED')
    parser.add_argument('reference', type=Path, metavar='REFERENCE')
    parser.add_argument('--out', type=Path, metavar='F.json', help='file for the result')
    parser.add_argument(
        '--inception-weights', type=Path, metavar='W.pth', help='default: looked for in exp/pretrained_model'
    )
    parser.add_argument(
        '--feature-extractor', default=INCEPTION, metavar='NAME', help='registered name (default: %(default)s)'
    )
    parser.add_argument('--metrics', nargs='+', choices=METRICS, default=METRICS, help='default: all')
    parser.add_argument('--batch-size', type=int, default=64, metavar='B', help='default: %(default)s')
    parser.add_argument(
        '--allow-protocol-mismatch', action='store_true', help='measure all the same; the result says so'
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measures, prints and writes the result."""
    result = measure(
        ImageSet.of_folder(args.generated),
        ImageSet.of_folder(args.reference),
        args.feature_extractor,
        args.inception_weights,
        args.metrics,
        args.batch_size,
        args.allow_protocol_mismatch,
        sys.stderr.isatty(),
    )
    for name, number in result['metrics'].items():
        print(f'{name}: {number:.7g}')
    for mismatch in result['protocol']['mismatches']:
        print(f'not the published protocol: {mismatch}')
    if args.out:
        replace_file(args.out, json.dumps(result, indent=2) + '\n')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
