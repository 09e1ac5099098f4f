"""Few-shot classification: training on k images per class, once for each of several random subsets; mean and spread.

``tools/few_shot.py`` is the command. Every run is a run of ``tools/train.py`` and ``tools/test.py``, on all of the test
data.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from addp_backbone.checkpoint.locate import find_latest_checkpoint
from addp_backbone.files.atomic import replace_file
from addp_backbone.files.shipped import shipped_folder
from addp_backbone.runtime.config_checks import LaunchError

TOOLS = shipped_folder('tools')
RESULT_FILE = 'few_shot.json'


def run_few_shot(
    cfg: Config, config_file: str, work_dir: Path, num_processes: int = 1, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains and tests once for each seed; an interrupted call can be repeated and resumes.

    Args:
        cfg: The config, with ``few_shot=dict(images_per_class=, seeds=)``.
        config_file: The file of the config.
        work_dir: Folder for one folder per seed and ``few_shot.json``. Use another folder for other options.
        num_processes: Number of processes per run.
        options: ``--cfg-options`` of every run.

    Returns:
        A dict of ``images_per_class`` and, for each metric, its ``values`` (by seed), ``mean`` and ``std`` (of the
        sample; 0 for one seed).

    Raises:
        LaunchError: If the config has no ``few_shot``, or a run fails.
    """
    settings = cfg.get('few_shot') or {}
    if set(settings) != {'images_per_class', 'seeds'} or not settings['seeds']:
        raise LaunchError(
            f'the config has few_shot={dict(settings) or None}, wanted few_shot=dict(images_per_class=10, '
            'seeds=(0, 1, 2))'
        )
    metrics = {}
    for seed in settings['seeds']:
        run_dir = work_dir / f'images_{settings["images_per_class"]}' / f'seed_{seed}'
        metrics[seed] = _train_and_test(
            config_file,
            run_dir,
            num_processes,
            [
                *options,
                f'train_dataloader.dataset.images_per_class={settings["images_per_class"]}',
                f'train_dataloader.dataset.subset_seed={seed}',
                f'randomness.seed={seed}',
            ],
        )
    summary = {'images_per_class': settings['images_per_class'], **summarise(metrics)}
    replace_file(work_dir / RESULT_FILE, json.dumps(summary, indent=2) + '\n')
    return summary


def summarise(metrics: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over seeds.

    Args:
        metrics: Maps seeds to metrics, and metrics to values; the same metrics for each seed.
    """
    names = next(iter(metrics.values()))
    return {
        name: {
            'values': {seed: values[name] for seed, values in metrics.items()},
            'mean': statistics.fmean(values[name] for values in metrics.values()),
            'std': statistics.stdev(values[name] for values in metrics.values()) if len(metrics) > 1 else 0.0,
        }
        for name in names
    }


def _train_and_test(config_file: str, run_dir: Path, num_processes: int, options: Sequence[str]) -> dict[str, float]:
    words = ['--work-dir', str(run_dir), '--cfg-options', *options]
    _run('train', [config_file], num_processes, ['--resume', *words])
    checkpoint = find_latest_checkpoint(run_dir)
    if checkpoint is None:
        raise LaunchError(f'training left no checkpoint in {run_dir}; see its log')
    result = run_dir / 'metrics.json'
    _run('test', [config_file, str(checkpoint)], num_processes, ['--out', str(result), *words])
    return json.loads(result.read_text(encoding='utf-8'))


def _run(tool: str, positional: Sequence[str], num_processes: int, words: Sequence[str]) -> None:
    if num_processes == 1:
        command = [sys.executable, str(TOOLS / f'{tool}.py'), *positional, *words]
    else:
        command = [str(TOOLS / f'dist_{tool}.sh'), *positional, str(num_processes), *words]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise LaunchError(f'tools/{tool}.py failed with exit code {code}: {" ".join(command)}')
