"""Rows of trainings, read from finished tests, and whether their configs were the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray

from addp_backbone.detection.image_matches import ImageMatches
from addp_backbone.files.image_results import read_image_results
from addp_backbone.runtime.image_areas import AREAS
from experiments.probes.bootstrap import ImageAreas, Resampled, bootstrap_scores
from experiments.trained.protocols import PER_IMAGE_FILE, MadeRun, TrainedJob

MEASURES = {AREAS: 'mIoU', 'bbox': 'AP box', 'segm': 'AP mask'}
# Of a config, what differs between runs of one protocol: weights, seed, where and how it runs.
_OF_A_RUN = (
    'model.backbone.init_cfg',
    'model.backbone.pretrained',
    'model.backbone.model',
    'randomness.seed',
    'work_dir',
    'load_from',
    'resume',
    'launcher',
    'experiment_name',
    'test_evaluator',
    'val_evaluator',
    'visualizer',
    'env_cfg',
)


@dataclass(frozen=True)
class TrainedRow:
    """One measure of one finished training.

    Attributes:
        name: Of the protocol.
        backbone: What it started from.
        seed: Of the training.
        measure: A value of :data:`MEASURES`.
        images: Ids or paths of the validation images.
        result: What each image gave.
        seconds: How long its last run took; None if it was made elsewhere.
        folder: Of its test.
    """

    name: str
    backbone: str
    seed: int
    measure: str
    images: tuple[str, ...]
    result: Resampled
    seconds: float | None
    folder: Path

    @property
    def score(self) -> float:
        """In per cent."""
        return self.result.scores(np.ones((1, len(self.images)))).item()

    @cached_property
    def draws(self) -> NDArray[np.float64]:
        """Scores of draws of the validation images, the same draws for all rows of the same number of images."""
        return bootstrap_scores(self.result, len(self.images))


def read_rows(jobs: Sequence[TrainedJob], runs: Sequence[MadeRun]) -> list[TrainedRow]:
    """Rows of what has finished.

    Args:
        jobs: Made here; those that have not finished give none.
        runs: Made elsewhere.

    Returns:
        Rows of all measures.

    Raises:
        ValueError: If a file is missing or damaged, or two rows of a protocol and measure are of different images.
    """
    rows: list[TrainedRow] = []
    for job in jobs:
        mark = job.train.read_mark(job.train.file())
        if mark is not None and job.test.finished:
            rows += _rows(job.name, job.backbone, job.seed, job.folder, mark.get('seconds'))
    for run in runs:
        rows += _rows(run.name, run.backbone, run.seed, run.folder, None)
    first: dict[tuple[str, str], TrainedRow] = {}
    for row in rows:
        other = first.setdefault((row.name, row.measure), row)
        if other.images != row.images:
            raise ValueError(
                f'{row.folder} was tested on other images than {other.folder} ({len(row.images)} and '
                f'{len(other.images)}): rows of one protocol, {row.name!r}, are compared image by image'
            )
    return rows


def protocol_differences(rows: Sequence[TrainedRow]) -> dict[str, list[str]]:
    """In which values of their configs the runs of each protocol differ, besides weights, seeds and folders.

    Args:
        rows: Their folders have the config that the test wrote.

    Returns:
        Name of the protocol -> lines ``option: value / value``; a run without a config says so.
    """
    lines: dict[str, list[str]] = {}
    for name in dict.fromkeys(row.name for row in rows):
        folders = list(dict.fromkeys(row.folder for row in rows if row.name == name))
        configs = {folder: _config_values(folder) for folder in folders}
        known = [values for values in configs.values() if values is not None]
        lines[name] = [f'{folder}: no config' for folder, values in configs.items() if values is None]
        for key in sorted({key for values in known for key in values}):
            found = dict.fromkeys(repr(values.get(key, 'not set')) for values in known)
            if len(found) > 1:
                lines[name].append(f'{key}: {" / ".join(found)}')
    return lines


def _rows(name: str, backbone: str, seed: int, folder: Path, seconds: float | None) -> list[TrainedRow]:
    found = []
    for measure, arrays in read_image_results(folder / PER_IMAGE_FILE).items():
        if measure not in MEASURES:
            raise ValueError(f'{folder / PER_IMAGE_FILE} has the unknown measure {measure!r}')
        try:
            images, result = _result(measure, arrays)
        except KeyError as error:
            raise ValueError(f'{folder / PER_IMAGE_FILE} lacks {error} of {measure}') from error
        found.append(TrainedRow(name, backbone, seed, MEASURES[measure], images, result, seconds, folder))
    return found


def _result(measure: str, arrays: Mapping[str, NDArray[Any]]) -> tuple[tuple[str, ...], Resampled]:
    if measure == AREAS:
        return tuple(map(str, arrays['images'])), ImageAreas(arrays['areas'])
    matches = ImageMatches.of_arrays(arrays)
    return matches.images, matches


def _config_values(folder: Path) -> dict[str, Any] | None:
    """The values of the config that a test left in its folder, flat, without what differs between runs anyway."""
    file = next(iter(sorted(folder.glob('*.py'))), None)
    if file is None:
        return None
    flat: dict[str, Any] = {}
    _flatten(Config.fromfile(file).to_dict(), '', flat)
    return {key: value for key, value in flat.items() if not key.startswith(_OF_A_RUN)}


def _flatten(node: Any, path: str, flat: dict[str, Any]) -> None:
    if isinstance(node, Mapping):
        for key, value in node.items():
            _flatten(value, f'{path}.{key}' if path else str(key), flat)
    else:
        flat[path] = node
