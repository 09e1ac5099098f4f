"""Runs every row's command and prints the whole table as Markdown; ``make benchmark``.

    python -m tools.benchmark.run_all                           # about an hour on two cores; nothing else should run
    python -m tools.benchmark.run_all --only backbone --pairs 1
    python -m tools.benchmark.run_all --smoke                   # tiny sizes, to see that every command works

Rows appear on stderr as they are measured. Exits with 1 if a command failed; the others' rows are printed all the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

from tools.benchmark.pairs import BenchmarkRow, markdown
from tools.command_line import FAILED, OK, ROOT, make_parser, print_error, run_command

COMMANDS = [
    *(
        ('backbone', '--mode', mode, *pyramid)
        for mode in ('forward', 'train', 'checkpoint', 'bf16')
        for pyramid in ((), ('--pyramid',))
    ),
    *(('timm_vit', '--mode', mode) for mode in ('forward', 'train', 'checkpoint', 'bf16')),
    *(('addp', '--mode', mode, *bf16) for mode in ('step', 'generate') for bf16 in ((), ('--bf16',))),
    ('lsj',),
    ('worker_memory',),
    ('coco_eval',),
    ('scaling',),
]


def run_row(command: Sequence[str], options: Sequence[str]) -> list[BenchmarkRow]:
    """The rows of a command.

    Raises:
        RuntimeError: If it fails.
    """
    words = [sys.executable, '-m', f'tools.benchmark.{command[0]}', *command[1:], *options, '--json']
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} ended with code {done.returncode}')
    return [BenchmarkRow(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith('{')]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        '--only', default='', metavar='TEXT', help='commands whose words contain this, e.g. "addp --mode step"'
    )
    parser.add_argument('--pairs', metavar='N', help="timed calls of each side (default: each command's)")
    parser.add_argument('--threads', metavar='T', help="CPU threads (default: torch's)")
    parser.add_argument('--smoke', action='store_true', help='tiny sizes')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    options = [
        word for name in ('pairs', 'threads') if getattr(args, name) for word in (f'--{name}', getattr(args, name))
    ]
    options += ['--smoke'] if args.smoke else []
    rows, failures = [], []
    for command in COMMANDS:
        if args.only not in ' '.join(command):
            continue
        try:
            new = run_row(command, options)
        except RuntimeError as error:
            failures.append(str(error))
            new = []
        print(*(new or failures[-1:]), sep='\n', file=sys.stderr, flush=True)
        rows += new
    print(markdown(rows))
    for failure in failures:
        print_error(failure)
    return FAILED if failures else OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
