"""Checks what must hold on a GPU: each check in a process of its own, a table at the end, JSON after every check.

    python tools/gpu_check.py [--device cuda|cpu] [--only N ...] [--budget S] [--out F.json]

With --device cpu the checks' small versions run on the CPU: that tests this command and the checks, and tells nothing
of a GPU. A check whose packages are not installed is skipped, one that the budget has no time for is not run. The list
is in docs/gpu.md. Exit code 0: nothing failed; 1: something did; 3: there is no GPU.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import FAILED, OK, make_parser, run_command

from tools.gpu.checks import CHECKS, OPENMMLAB, Check
from tools.gpu.light_imports import import_lightly, missing_packages

NO_GPU = 3
OWN_SECONDS = 10  # of the budget, for this process to start and to end on a busy machine


class NoGPUError(ValueError):
    """There is none."""

    exit_code = NO_GPU


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda', help='default: %(default)s')
    parser.add_argument('--only', type=int, nargs='+', choices=sorted(CHECKS), metavar='N', help='numbers of checks')
    parser.add_argument('--budget', type=float, default=480, metavar='S', help='seconds for all (default: %(default)s)')
    parser.add_argument(
        '--out', type=Path, default=Path('gpu_check.json'), metavar='F.json', help='default: %(default)s'
    )
    parser.add_argument('--inside', type=int, help=argparse.SUPPRESS)  # runs one check in this process
    parser.add_argument('--report', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.budget > 0:
        parser.error(f'--budget is {args.budget:g}, wanted seconds')
    return args


def run(args: argparse.Namespace) -> int:
    """Runs the checks one after another; returns the exit code."""
    if args.inside is None or not needs_whole_project(CHECKS[args.inside]):
        import_lightly()
    from tools.gpu import harness

    if args.inside is not None:
        harness.run_inside(CHECKS[args.inside], args.device, args.report)
        return OK
    if args.device == 'cpu':
        print('no GPU is used: this tests the command and the checks themselves')
    else:
        _require_gpu()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the check that runs ends with this
    budget_s = max(1.0, args.budget - OWN_SECONDS)
    rows = harness.run_checks(
        args.only or list(CHECKS), args.device, budget_s, args.out, sys.argv, Path(__file__).resolve()
    )
    print(harness.table(rows))
    print(f'figures and findings: {args.out}')
    return FAILED if any(row['state'] in harness.FAILURES for row in rows) else OK


def needs_whole_project(check: Check) -> bool:
    """Whether a check's process imports ``addp_backbone`` as it is, which needs OpenMMLab."""
    return bool(check.packages) or (check.whole_project and not missing_packages(OPENMMLAB))


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise NoGPUError(
            f'torch {torch.__version__} sees no GPU (torch.cuda.is_available() is False; it was built for CUDA '
            f'{torch.version.cuda}): python tools/doctor.py says more; --device cpu tests this command itself'
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
