"""Makes the documentation's gallery from a finished miniature: docs/gallery.md and its images.

Run:  make gallery                                          the miniature first, if it has not finished
      python tools/gallery.py --work-dir work_dirs/quickstart
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import ROOT, make_parser, run_command

from experiments.miniature.gallery import make_gallery


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        '--work-dir', type=Path, default=ROOT / 'work_dirs/quickstart', help='of tools/quickstart.py (default: its own)'
    )
    parser.add_argument('--docs', type=Path, default=ROOT / 'docs', help='folder to write to (default: %(default)s)')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ... (default: the first GPU, or the CPU)')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Writes the page and its images."""
    for path in make_gallery(args.work_dir, args.docs, args.device):
        print(f'written: {path} ({path.stat().st_size} bytes)')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
