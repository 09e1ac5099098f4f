"""Fetches the released checkpoints and FID's Inception weights to where the configs look for them, and checks them.

    python tools/download_weights.py                    everything (a file that is there is checked, not fetched again)
    python tools/download_weights.py base               what ViT-Base needs; or large, or names such as addp-vit-base-16
    python tools/download_weights.py --check            checks what is there, fetches nothing

A cut download goes on where it stopped when started again. A file is moved to where it belongs (exp/pretrained_model,
exp/release) only after it was loaded. Without network it says how to get the files by hand; exit code 1 then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import FAILED, OK, ROOT, make_parser, print_error, run_command

from pretrain.weights.download import GROUPS, DownloadError, check, download, instructions, names_of, path_of


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        'names',
        nargs='*',
        default=['all'],
        metavar='NAME',
        help=f'{", ".join((*GROUPS, *GROUPS["all"]))} (default: all)',
    )
    parser.add_argument(
        '--root',
        type=Path,
        default=ROOT,
        metavar='DIR',
        help="folder that exp/ lies in (default: the repository's)",
    )
    parser.add_argument('--check', action='store_true', help='check what is there and fetch nothing')
    return parser.parse_args(argv)


def get(name: str, args: argparse.Namespace) -> str:
    """Fetches or checks one file; returns what was found."""
    path = path_of(name, args.root)
    if args.check:
        if not path.is_file():
            raise DownloadError(f'{path} is not there')
        return check(name, path)
    return download(name, args.root, quiet=not sys.stderr.isatty())


def run(args: argparse.Namespace) -> int:
    """Fetches or checks; returns 1 if a file failed."""
    failed = []
    for name in names_of(args.names):
        try:
            print(f'{path_of(name, args.root)}: {get(name, args)}', flush=True)
        except DownloadError as error:
            failed.append(name)
            print_error(f'{name}: {error}')
    if failed:
        print(instructions(failed, args.root), file=sys.stderr)
    return FAILED if failed else OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv), (DownloadError, OSError))


if __name__ == '__main__':
    sys.exit(main())
