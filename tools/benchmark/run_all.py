"""Runs every row's command and prints the whole table as Markdown; ``make benchmark``.

    python tools/benchmark/run_all.py                               # about an hour on two cores; nothing else should run
    python tools/benchmark/run_all.py --only backbone --pairs 1
    python tools/benchmark/run_all.py --smoke                       # tiny sizes, to see that every command works

Rows appear on stderr as they are measured. Exits with 1 if a command failed; the others' rows are printed all the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.benchmark.pairs import Row, markdown

FOLDER = Path(__file__).resolve().parent
COMMANDS = [
    *(
        ('backbone.py', '--mode', mode, *pyramid)
        for mode in ('forward', 'train', 'checkpoint', 'bf16')
        for pyramid in ((), ('--pyramid',))
    ),
    *(('addp.py', '--mode', mode, *bf16) for mode in ('step', 'generate') for bf16 in ((), ('--bf16',))),
    ('lsj.py',),
    ('worker_memory.py',),
    ('coco_eval.py',),
    ('scaling.py',),
]


def run(command: Sequence[str], options: Sequence[str]) -> list[Row]:
    """The rows of a command.

    Raises:
        RuntimeError: If it fails.
    """
    words = [sys.executable, str(FOLDER / command[0]), *command[1:], *options, '--json']
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} ended with code {done.returncode}')
    return [Row(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith('{')]


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--only', default='', metavar='TEXT', help='commands whose words contain this, e.g. "addp.py --mode step"'
    )
    parser.add_argument('--pairs', metavar='N', help="timed calls of each side (default: each command's)")
    parser.add_argument('--threads', metavar='T', help="CPU threads (default: torch's)")
    parser.add_argument('--smoke', action='store_true', help='tiny sizes')
    args = parser.parse_args(words)
    options = [
        word for name in ('pairs', 'threads') if getattr(args, name) for word in (f'--{name}', getattr(args, name))
    ]
    options += ['--smoke'] if args.smoke else []
    rows, failures = [], []
    for command in COMMANDS:
        if args.only not in ' '.join(command):
            continue
        try:
            new = run(command, options)
        except RuntimeError as error:
            failures.append(str(error))
            new = []
        print(*(new or failures[-1:]), sep='\n', file=sys.stderr, flush=True)
        rows += new
    print(markdown(rows))
    for failure in failures:
        print(f'error: {failure}', file=sys.stderr)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
