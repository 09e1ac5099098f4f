"""A probe as a whole: which backbones on which data, with which settings; from a command line or from a file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from addp_backbone.datasets.findings import Progress
from addp_backbone.datasets.masks import SegmentationSplit
from experiments.probes.backbones import find_source
from experiments.probes.data import read_data
from experiments.probes.pictures import PICTURES_FOLDER, Pictures
from experiments.probes.run import Prober
from experiments.probes.settings import CacheSettings, ProbeSettings

# Keys of a plan file -> fields of ProbeSettings.
_SETTINGS = dict(
    protocols='protocols',
    blocks='blocks',
    fraction='fractions',
    seeds='seeds',
    size='size',
    patches='num_patches',
    l2='l2',
    memory='memory_size',
    linear_iters='linear_iters',
    precision='precision',
)
_FOLDERS = ('train_images', 'train_masks', 'val_images', 'val_masks')
_DATA = ('train_stride', 'val_stride', 'void', 'mask_suffix')
_REQUIRED = ('backbones', *_FOLDERS, 'classes')


@dataclass(frozen=True)
class ProbePlan:
    """What is probed.

    Attributes:
        backbones: As :func:`experiments.probes.backbones.find_source` takes them.
        train: Folders of the training split.
        val: Folders of the validation split.
        classes: File with the class names.
        settings: How it is probed.
        strides: Every how many-th pair of training and of validation is used.
        void: 'auto', 'zero' or '255'.
        mask_suffix: How mask names end.
        patch: (x, y) of the patch of the similarity maps, as shares of width and height.
    """

    backbones: tuple[str, ...]
    train: SegmentationSplit
    val: SegmentationSplit
    classes: Path
    settings: ProbeSettings = field(default_factory=ProbeSettings)
    strides: tuple[int, int] = (1, 1)
    void: str = 'auto'
    mask_suffix: str = '.png'
    patch: tuple[float, float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        if not self.backbones:
            raise ValueError('no backbones are given')
        if not all(isinstance(stride, int) for stride in self.strides) or min(self.strides) < 1:
            raise ValueError(f'strides must be whole numbers of at least 1, got {self.strides}')
        if not isinstance(self.mask_suffix, str):
            raise ValueError(f'mask_suffix must be text such as .png, got {self.mask_suffix!r}')
        if len(self.patch) != 2 or not all(0 <= share < 1 for share in self.patch):
            raise ValueError(f'the patch of the similarity maps wants two numbers in [0, 1), got {self.patch}')


def prepare(
    plan: ProbePlan,
    cache: CacheSettings,
    out: Path,
    report: Callable[[str], None],
    num_workers: int = 1,
    progress: Progress | None = None,
) -> tuple[Prober, Pictures]:
    """Checks backbones, blocks and data; nothing is computed yet.

    Args:
        plan: What is probed.
        cache: Where features are kept.
        out: Folder of the results.
        report: Gets lines for people.
        num_workers: Threads that check the data.
        progress: Wraps an iterable (second argument: its length).

    Returns:
        What runs the plan, and the pictures that it draws.

    Raises:
        ValueError: If something of the plan is missing or does not fit.
    """
    sources = [find_source(text) for text in plan.backbones]
    for source in sources:
        plan.settings.chosen_blocks(source)
    data = read_data(
        (plan.train, plan.val), plan.classes, plan.void, plan.mask_suffix, plan.strides, num_workers, progress
    )
    for line in data.warnings:
        report(line)
    pictures = Pictures(data.val, plan.patch, out / PICTURES_FOLDER)
    return Prober(sources, data, plan.settings, cache, out, report), pictures


def read_size(text: str) -> tuple[int, int]:
    """Reads ``392x308`` as (width, height).

    Raises:
        ValueError: If it is something else.
    """
    found = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if found is None:
        raise ValueError(f'wanted WIDTHxHEIGHT in pixels, such as 392x308, got {text!r}')
    return int(found[1]), int(found[2])


def read_plan(path: Path, device: str, extra: tuple[str, ...] = ()) -> tuple[ProbePlan, dict[str, Any]]:
    """Reads a plan file: YAML or JSON with the options of ``tools/probe.py``, '_' or '-' between their words.

    Args:
        path: The file. Paths in it are relative to the folder in which the command runs.
        device: Where to compute.
        extra: Keys that the caller reads.

    Returns:
        The plan, and the values of the extra keys that are there.

    Raises:
        ValueError: If the file is missing or no mapping, or a key is unknown or missing, or a value of the wrong kind.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f'plan {path} cannot be read: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'plan {path} holds a {type(content).__name__}, wanted keys such as backbones and classes')
    values = {str(key).replace('-', '_'): value for key, value in content.items()}
    known = (*_REQUIRED, *_DATA, *_SETTINGS, 'patch', *extra)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f'plan {path}: unknown key {key!r}{f", did you mean {near[0]!r}?" if near else ""}')
    if missing := [key for key in _REQUIRED if key not in values]:
        raise ValueError(f'plan {path} lacks {", ".join(missing)}')
    try:
        return _to_plan(values, device), {key: values[key] for key in extra if key in values}
    except TypeError as error:
        raise ValueError(f'plan {path}: a value is of the wrong kind: {error}') from error


def _to_plan(values: Mapping[str, Any], device: str) -> ProbePlan:
    settings: dict[str, Any] = dict(device=device)
    for key, name in _SETTINGS.items():
        if key in values:
            settings[name] = values[key]
    for key, kind in (('protocols', str), ('blocks', str), ('fraction', float), ('seeds', int)):
        name = _SETTINGS[key]
        if name in settings:
            given = settings[name]
            settings[name] = tuple(_read(key, kind, one) for one in (given if isinstance(given, list) else [given]))
    if 'size' in settings:
        settings['size'] = read_size(str(settings['size']))
    if 'l2' in settings:
        settings['l2'] = _read('l2', float, settings['l2'])  # YAML reads 1e-5 as text
    folders = [Path(values[name]) for name in _FOLDERS]
    backbones = values['backbones']
    return ProbePlan(
        tuple(map(str, backbones if isinstance(backbones, list) else [backbones])),
        SegmentationSplit('train', folders[0], folders[1]),
        SegmentationSplit('val', folders[2], folders[3]),
        Path(values['classes']),
        ProbeSettings(**settings),
        (values.get('train_stride', 1), values.get('val_stride', 1)),
        str(values.get('void', 'auto')),
        values.get('mask_suffix', '.png'),
        tuple(values.get('patch', (0.5, 0.5))),
    )


def _read(key: str, kind: type, value: Any) -> Any:
    """A value of a plan as another kind; refuses what that would change silently, such as a seed of 0.5."""
    if kind is int and isinstance(value, (bool, float)):
        raise ValueError(f'{key}: wanted whole numbers, got {value!r}')
    try:
        return kind(value)
    except ValueError as error:
        raise ValueError(f'{key}: {error}') from error
