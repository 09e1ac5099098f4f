"""Looks at the environment: versions, devices, mmcv's ops, and a line that mends each known bad combination.

Run:  python tools/doctor.py                           # exit code 0 if all is well, 1 otherwise
      python tools/doctor.py checkpoint FILE|WORK_DIR  # whether each checkpoint is whole, and which one --resume takes
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def load_by_path(name: str, folder: str = 'addp_backbone/runtime') -> ModuleType:
    """Loads a module of this checkout alone: importing its package would need everything that may be broken."""
    spec = importlib.util.spec_from_file_location(f'addp_{name}', ROOT / folder / f'{name}.py')
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


command_line = load_by_path('command_line', 'tools')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command_line.make_parser(__doc__)
    subjects = parser.add_subparsers(dest='subject', metavar='checkpoint')
    checkpoint = subjects.add_parser('checkpoint', help='look at checkpoints instead of the environment')
    checkpoint.add_argument('path', type=Path, metavar='FILE|DIR', help='a checkpoint, or a folder with checkpoints')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Looks, prints, and returns 1 if there are problems."""
    if args.subject == 'checkpoint':
        lines, num_damaged = load_by_path('integrity', 'addp_backbone/checkpoint').report(args.path)
        print('\n'.join(lines))
        return command_line.FAILED if num_damaged else command_line.OK
    doctor = load_by_path('doctor')
    facts = load_by_path('environment').collect_facts(ROOT)
    print('\n'.join(doctor.describe(facts)))
    problems = doctor.find_problems(facts)
    for problem in problems:
        print(f'\nPROBLEM  {problem.what}\n   MEND  {problem.mend}')
    print(f'\n{len(problems)} problem{"s" * (len(problems) != 1)} found' if problems else '\nno problems found')
    return command_line.FAILED if problems else command_line.OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command_line.run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
