"""Puts our configs' values beside those of their sources (ViTDet, MAE, BEiT, MAGE, ADDP), and says what has drifted.

    python tools/reference.py              every value as it stands today, the source's, and where
    python tools/reference.py --drifted    only values that are no longer those of docs/reference_values.json
    python tools/reference.py --write      renews the tables of docs/reference.md

Exit code 1 if a value has drifted.
"""

import argparse
import sys
from collections.abc import Sequence

from command_line import FAILED, OK, make_parser, run_command

from addp_backbone.files.atomic import replace_file
from experiments.reference_values import PAGE, check, insert, load, render


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('--drifted', action='store_true', help='print only what has drifted')
    parser.add_argument('--write', action='store_true', help='renew the tables of docs/reference.md')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Compares, prints or writes; returns 1 if a value has drifted."""
    sources, tables = load()
    findings = check(tables)
    drifted = [finding for finding in findings if finding.has_drifted]
    for finding in drifted if args.drifted or args.write else findings:
        row = finding.row
        note = f'DRIFTED from {row.value}; ' if finding.has_drifted else ''
        note += f'departure: {row.departure}; ' if row.departure else ''
        print(f'{finding.table.config}  {row.key}\n    {finding.today}  |  {row.theirs}  |  {note}{row.source}')
    print(f'{len(findings)} values, {len(drifted)} drifted, {sum(bool(f.row.departure) for f in findings)} departures')
    if args.write and not drifted:
        replace_file(PAGE, insert(PAGE.read_text(encoding='utf-8'), render(sources, tables)))
        print(f'written {PAGE}')
    return FAILED if drifted else OK


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
