"""Draws the curves of one or more training runs and prints how each began and ended.

python tools/plot_curves.py work_dirs/tokenizer_tiny work_dirs/token_predictor_tiny work_dirs/addp_tiny --out curves.png
python tools/plot_curves.py work_dirs/tokenizer_tiny --keys loss_pixel psnr codebook_used --out tokenizer.png

Reads what mmengine writes into <work_dir>/<time>/vis_data/scalars.json; a resumed run's files are put together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import make_parser, run_command

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt

Curve = dict[int, float]


def read_curves(work_dir: Path, keys: Sequence[str]) -> dict[str, Curve]:
    """Reads a run: name -> iteration -> value; where runs overlap, the later one holds.

    Raises:
        FileNotFoundError: If the folder has no log.
    """
    files = sorted(work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        raise FileNotFoundError(f'{work_dir} has no */vis_data/scalars.json: wanted the work dir of a training run')
    curves: dict[str, Curve] = {key: {} for key in keys}
    for file in files:
        for line in file.read_text(encoding='utf-8').splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut by a kill or a full disk
                continue
            for key in keys:
                if key in record and 'step' in record:
                    curves[key][record['step']] = record[key]
    return curves


def draw(runs: dict[str, dict[str, Curve]], keys: Sequence[str], out: Path) -> None:
    """Saves a row of plots for each key, a column for each run."""
    figure, axes = plt.subplots(
        len(keys), len(runs), figsize=(4 * len(runs), 3 * len(keys)), squeeze=False, layout='constrained'
    )
    for row, key in zip(axes, keys, strict=True):
        for axis, (name, curves) in zip(row, runs.items(), strict=True):
            steps = sorted(curves[key])
            axis.plot(steps, [curves[key][step] for step in steps])
            axis.set(title=Path(name).name, xlabel='iteration', ylabel=key)
            axis.grid(alpha=0.3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('work_dirs', nargs='+', type=Path, metavar='WORK_DIR', help='folder of a training run')
    parser.add_argument('--keys', nargs='+', default=['loss'], help='what to draw (default: loss)')
    parser.add_argument('--out', type=Path, default=Path('curves.png'), help='default: %(default)s')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Draws the curves and prints their ends."""
    runs = {str(work_dir): read_curves(work_dir, args.keys) for work_dir in args.work_dirs}
    draw(runs, args.keys, args.out)
    for name, curves in runs.items():
        for key, curve in curves.items():
            if curve:
                first, last = min(curve), max(curve)
                print(f'{name}: {key} {curve[first]:.4g} (iteration {first}) -> {curve[last]:.4g} (iteration {last})')
    print(f'written: {args.out}')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
