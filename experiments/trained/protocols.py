"""Which trainings a comparison has: a config and its options for each protocol, or runs that were made elsewhere."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from addp_backbone.runtime.option_parsing import parse_options
from experiments.stages import Stage

PER_IMAGE_FILE, METRICS_FILE = 'per_image.npz', 'metrics.json'
TRAININGS_FOLDER = 'trainings'  # in the folder of a comparison
_KEYS = ('name', 'config', 'options', 'amp', 'seeds', 'backbones')
_RUN_KEYS = ('name', 'runs')
_ONE_RUN = ('backbone', 'seed', 'folder')


@dataclass(frozen=True)
class Training:
    """Trainings that are made here: one for each backbone and seed.

    Attributes:
        name: Of the protocol; several trainings may share it, for backbones that need different configs.
        config: File, or name of a config of ours.
        options: ``--cfg-options``.
        amp: Whether to train in mixed precision.
        seeds: Of the trainings.
        backbones: Those that it trains.
    """

    name: str
    config: str
    options: tuple[str, ...]
    amp: bool
    seeds: tuple[int, ...]
    backbones: tuple[str, ...]

    def parsed_options(self) -> dict[str, Any]:
        """The options as ``tools/train.py`` takes them.

        Raises:
            ValueError: If one is not ``k=v``, or cannot be read.
        """
        try:
            return parse_options(self.options)
        except ValueError as error:
            raise ValueError(f'training {self.name!r}: {error}') from error


@dataclass(frozen=True)
class MadeRun:
    """A training that was made and tested elsewhere.

    Attributes:
        name: Of the protocol.
        backbone: What it started from.
        seed: Of the training.
        folder: ``--work-dir`` of its ``tools/test.py``, with ``per_image.npz``.
    """

    name: str
    backbone: str
    seed: int
    folder: Path


@dataclass(frozen=True)
class TrainedJob:
    """A training with its test.

    Attributes:
        name: Of the protocol.
        backbone: What it starts from.
        seed: Of the training.
        train: Its command.
        test: Command of its evaluation; its folder has :data:`PER_IMAGE_FILE`.
    """

    name: str
    backbone: str
    seed: int
    train: Stage
    test: Stage

    @property
    def folder(self) -> Path:
        """Where the results are."""
        return self.test.file()

    @property
    def seconds(self) -> float:
        """About how long what is left takes."""
        return sum(stage.seconds for stage in (self.train, self.test) if not stage.finished)


def read_protocols(
    entries: object, backbones: Sequence[str], seeds: Sequence[int]
) -> tuple[tuple[Training, ...], tuple[MadeRun, ...]]:
    """Reads the key ``trainings`` of a plan.

    Args:
        entries: Its value: a list of mappings.
        backbones: All backbones of the plan.
        seeds: Those of an entry that names none.

    Returns:
        What is trained here, and what was trained elsewhere.

    Raises:
        ValueError: If an entry is incomplete, has unknown keys or values of the wrong kind, or names a backbone that
            the plan does not have.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError('trainings must be a list of mappings, each with name and config, or name and runs')
    trainings, runs = [], []
    for entry in entries:
        where = f'training {entry.get("name")!r}'
        if 'runs' in entry:
            _check_keys(entry, _RUN_KEYS, _RUN_KEYS, where)
            runs += [_made(str(entry['name']), one) for one in _list(entry['runs'])]
            continue
        _check_keys(entry, _KEYS, ('name', 'config'), where)
        chosen = tuple(map(str, _list(entry.get('backbones', list(backbones)))))
        if unknown := sorted(set(chosen) - set(backbones)):
            raise ValueError(f'{where}: {", ".join(unknown)} is none of the backbones of the plan')
        amp = entry.get('amp', False)
        if not isinstance(amp, bool):
            raise ValueError(f'{where}: amp must be true or false, got {amp!r}')
        training = Training(
            str(entry['name']),
            str(entry['config']),
            tuple(map(str, _list(entry.get('options', [])))),
            amp,
            tuple(_seed(seed, where) for seed in _list(entry.get('seeds', list(seeds)))),
            chosen,
        )
        training.parsed_options()
        trainings.append(training)
    refuse_doubles(trainings, runs)
    return tuple(trainings), tuple(runs)


def _made(name: str, run: object) -> MadeRun:
    if not isinstance(run, Mapping):
        raise ValueError(f'training {name!r}: runs are mappings with {", ".join(_ONE_RUN)}, got {run!r}')
    _check_keys(run, _ONE_RUN, _ONE_RUN, f'training {name!r}, a run')
    seed = _seed(run['seed'], f'training {name!r}')
    return MadeRun(name, str(run['backbone']), seed, Path(str(run['folder'])))


def _check_keys(entry: Mapping[str, Any], known: Sequence[str], wanted: Sequence[str], where: str) -> None:
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ValueError(
                f'{where}: unknown key {key!r}{f", did you mean {near[0]!r}?" if near else ""} ({", ".join(known)})'
            )
    if missing := [key for key in wanted if key not in entry]:
        raise ValueError(f'{where} lacks {", ".join(missing)}')


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _seed(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f'{where}: seeds are numbers of 0 or more, got {value!r}')
    return value


def refuse_doubles(trainings: Sequence[Training], runs: Sequence[MadeRun]) -> None:
    """Raises ValueError if a name stands twice for one backbone and seed."""
    keys = [(one.name, backbone, seed) for one in trainings for backbone in one.backbones for seed in one.seeds]
    keys += [(run.name, run.backbone, run.seed) for run in runs]
    for key in keys:
        if keys.count(key) > 1:
            name, backbone, seed = key
            raise ValueError(f'training {name!r} stands twice for {backbone}, seed {seed}')
