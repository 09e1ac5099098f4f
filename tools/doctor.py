"""Looks at the environment: versions, devices, which mmcv ops are in use, and a line that mends each known bad combination.

Run:  python tools/doctor.py     # exit code 0 if all is well, 1 otherwise
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]


def load_by_path(name: str) -> ModuleType:
    """Loads a file of addp_backbone alone: importing the package would need everything that may be broken."""
    spec = importlib.util.spec_from_file_location(
        f'addp_{name}', REPOSITORY / 'addp_backbone' / 'runtime' / f'{name}.py'
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    doctor = load_by_path('doctor')
    facts = load_by_path('environment').collect_facts(REPOSITORY)
    print('\n'.join(doctor.describe(facts)))
    problems = doctor.find_problems(facts)
    for problem in problems:
        print(f'\nPROBLEM  {problem.what}\n   MEND  {problem.mend}')
    print(f'\n{len(problems)} problem{"s" * (len(problems) != 1)} found' if problems else '\nno problems found')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
