"""What the commands that probe have in common: the options of features, and lines for people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.probes.features import GB
from experiments.probes.settings import CacheSettings, best_device

CACHE_GB = 20.0


def add_feature_arguments(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Adds ``--device``, ``--cache`` and ``--cache-gb``.

    Args:
        parser: Gets the options.
        folder: Where features are kept unless the command line says otherwise.
    """
    parser.add_argument('--device', default=best_device(), help='cpu, cuda, cuda:1 ... (default: %(default)s)')
    parser.add_argument(
        '--cache', type=Path, default=folder, metavar='DIR', help='folder of the features (default: %(default)s)'
    )
    parser.add_argument(
        '--cache-gb',
        type=float,
        default=CACHE_GB,
        metavar='GB',
        help='what the folder may hold; what was not used for longest goes (default: %(default)s)',
    )


def cache_settings(args: argparse.Namespace) -> CacheSettings:
    """What :func:`add_feature_arguments` read of the cache.

    Raises:
        ValueError: If its size is not positive.
    """
    return CacheSettings(args.cache, int(args.cache_gb * GB))


def show_progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    """Shows a bar while the data are checked."""
    return tqdm(items, total=total, unit='image', desc='checking the data')


def report(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f'{line}\n')
    sys.stdout.flush()
