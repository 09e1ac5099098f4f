"""Few-shot classification: trains on k images a class once for each seed, tests on everything, prints mean and spread.

    python tools/few_shot.py pretrain/configs/linear_base.py --cfg-options few_shot.images_per_class=5 few_shot.seeds=0,1,2

Which images, and initial weights and augmentation, follow from the seed. Written: WORK_DIR/images_K/seed_S (a run each)
and WORK_DIR/few_shot.json. A cut command goes on when started again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import DictAction

from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.launch import load_config
from pretrain.classification.few_shot import run_few_shot


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or ``words`` in its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='classification config; its few_shot says how many images and which seeds')
    parser.add_argument('--work-dir', help='folder for the runs (default: work_dirs/CONFIG_NAME_few_shot)')
    parser.add_argument(
        '--processes', type=int, default=1, metavar='N', help='processes a run, on one machine (default: %(default)s)'
    )
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='K=V', help='as in tools/train.py')
    return parser.parse_args(words)


def read_options(pairs: list[str]) -> dict[str, object]:
    """``K=V`` pairs as tools/train.py reads them."""
    reader = argparse.ArgumentParser()
    reader.add_argument('--cfg-options', nargs='+', action=DictAction)
    return reader.parse_args(['--cfg-options', *pairs]).cfg_options if pairs else {}


def main(words: list[str] | None = None) -> None:
    """Runs the command."""
    arguments = parse_arguments(words)
    cfg = load_config(arguments.config, read_options(arguments.cfg_options))
    work_dir = Path(arguments.work_dir or f'{cfg.work_dir}_few_shot')
    summary = run_few_shot(cfg, arguments.config, work_dir, arguments.processes, arguments.cfg_options)
    for name, entry in summary.items():
        if isinstance(entry, dict):
            print(
                f'{name}: {entry["mean"]:.2f} +- {entry["std"]:.2f} ({", ".join(f"{value:.2f}" for value in entry["values"].values())}) '
                f'with {summary["images_per_class"]} images a class'
            )


if __name__ == '__main__':
    try:
        main()
    except LaunchError as error:
        sys.exit(f'error: {error}')
