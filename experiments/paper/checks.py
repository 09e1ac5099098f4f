"""Checks before anything long begins: data in their layout, checkpoints, disk, GPUs. Every problem is a sentence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from addp_backbone.checkpoint.storage import CheckpointError, read_checkpoint
from addp_backbone.files.atomic import sha256_of
from addp_backbone.files.images import is_image_name
from experiments.paper.rows import DETECTION, FINE_TUNING, GENERATION, LINEAR, SEGMENTATION
from experiments.paper.settings import Settings
from experiments.stages import REPOSITORY, Plan
from pretrain.evaluation.fidelity import INCEPTION, INCEPTION_FILE, find_inception_weights
from pretrain.weights.generator import holds_tokenizer
from pretrain.weights.published import PUBLISHED_FILES

TOKENIZER_FILE = 'vqgan_jax_strongaug'


@dataclass(frozen=True)
class Need:
    """A file or folder that has to be there.

    Attributes:
        root: Name of the data set, which is the option that says where it lies.
        path: Below the root.
        num_files: Images or masks in it, at any depth; None for a file, or if any number will do.
        num_folders: Class folders directly below; None if there are none or any number will do.
    """

    root: str
    path: str
    num_files: int | None = None
    num_folders: int | None = None


_CLASSIFICATION = (Need('imagenet', 'train', 1_281_167, 1000), Need('imagenet', 'val', 50_000, 1000))
_NEEDS = {
    GENERATION: (Need('imagenet', 'val', 50_000),),
    FINE_TUNING: _CLASSIFICATION,
    LINEAR: _CLASSIFICATION,
    DETECTION: (
        Need('coco', 'train2017', 118_287),
        Need('coco', 'val2017', 5_000),
        Need('coco', 'annotations/instances_train2017.json'),
        Need('coco', 'annotations/instances_val2017.json'),
    ),
    SEGMENTATION: tuple(
        Need('ade20k', f'{kind}/{split}', count)
        for split, count in (('training', 20_210), ('validation', 2_000))
        for kind in ('images', 'annotations')
    ),
}
_SHAPES_NEEDS = {
    GENERATION: (Need('shapes', 'plain'),),
    FINE_TUNING: (Need('shapes', 'classes/train'), Need('shapes', 'classes/val')),
    LINEAR: (Need('shapes', 'classes/train'), Need('shapes', 'classes/val')),
    DETECTION: tuple(
        Need('shapes', name) for name in ('images/train', 'images/val', 'instances_train.json', 'instances_val.json')
    ),
    SEGMENTATION: tuple(
        Need('shapes', name) for name in ('images/train', 'images/val', 'annotations/train', 'annotations/val')
    ),
}
LAYOUT_HINT = {
    'imagenet': 'ROOT/{train,val}/<1000 class folders>/*.JPEG',
    'coco': 'ROOT/{train2017,val2017}/*.jpg and ROOT/annotations/instances_{train2017,val2017}.json',
    'ade20k': 'ROOT/{images,annotations}/{training,validation} (ADEChallengeData2016)',
    'shapes': 'python tools/make_shapes.py ROOT --train 400 --val 100 --train-per-class 100 --val-per-class 50 '
    '--plain 1000',
}


@dataclass(frozen=True)
class DataIssue:
    """Data that are missing, or others than the protocol's.

    Attributes:
        tasks: Tasks that it concerns.
        text: A sentence.
        missing: Whether the data cannot be used at all; otherwise they only differ from the protocol's.
    """

    tasks: tuple[str, ...]
    text: str
    missing: bool


def find_data_issues(settings: Settings) -> list[DataIssue]:
    """Looks for files and folders that are missing, and for other numbers of images than the protocol's."""
    table = _SHAPES_NEEDS if settings.recipe.shapes else _NEEDS
    tasks_of: dict[Need, tuple[str, ...]] = {}
    for task in settings.tasks:
        for need in table[task]:
            tasks_of[need] = (*tasks_of.get(need, ()), task)
    return [
        DataIssue(tasks, text, missing) for need, tasks in tasks_of.items() for text, missing in _look(settings, need)
    ]


def _look(settings: Settings, need: Need) -> Iterator[tuple[str, bool]]:
    path = settings.data[need.root] / need.path
    if not path.exists():
        yield f'{path} is missing (--{need.root} {settings.data[need.root]}; wanted {LAYOUT_HINT[need.root]})', True
        return
    if need.num_folders is not None:
        folders = sum(entry.is_dir() for entry in os.scandir(path))
        if folders != need.num_folders:
            yield f'{path} has {folders} class folders, wanted {need.num_folders}', False
    if need.num_files is not None:
        found = count_images(path)
        if found != need.num_files:
            yield f'{path} has {found} images, wanted {need.num_files}', False


def find_problems(settings: Settings, plan: Plan, issues: Sequence[DataIssue], here: bool) -> list[str]:
    """Everything that speaks against starting, a sentence each.

    Args:
        settings: What was asked for.
        plan: Its stages.
        issues: From :func:`find_data_issues`.
        here: Whether it is to run on this machine.
    """
    return [
        *(issue.text for issue in issues if issue.missing or not settings.allow_mismatch),
        *check_checkpoints(settings),
        *check_machine(settings, plan, here),
    ]


def check_checkpoints(settings: Settings) -> list[str]:
    """Looks whether the files with weights are there, and at their checksums where these are known."""
    problems = []
    for init in settings.inits:
        if init.path is not None and not init.path.is_file():
            known = init.path.stem in PUBLISHED_FILES
            problems.append(
                f'{init.path} does not exist'
                + (f': python tools/download_weights.py {init.path.stem}' if known else '')
            )
    if GENERATION in settings.tasks:
        problems += _check_inception(settings) if settings.recipe.extractor == INCEPTION else []
        problems += [] if settings.recipe.shapes or settings.tokenizer else _check_tokenizer(settings)
    return problems


def check_machine(settings: Settings, plan: Plan, here: bool) -> list[str]:
    """Looks at free disk (against an estimate) and, for a run on this machine, at its GPUs."""
    problems = []
    wanted = sum(stage.cost.disk_gb for stage in plan.unfinished)
    path = next(folder for folder in (settings.work_dir, *settings.work_dir.parents) if folder.exists())
    free = shutil.disk_usage(path).free / 1e9
    if free < wanted:
        problems.append(
            f'{path} has {free:.0f} GB free, and about {wanted:.0f} GB are needed (estimate): free some, or give '
            'another --work-dir'
        )
    found = torch.cuda.device_count()
    if here and not settings.recipe.shapes and found < settings.num_gpus:
        problems.append(
            f'--gpus {settings.num_gpus}, but this machine has {found}: give their number, or --slurm for a cluster'
        )
    return problems


def count_images(folder: Path) -> int:
    """Number of images in a folder and all below it."""
    return sum(is_image_name(name) for _, _, names in os.walk(folder, followlinks=True) for name in names)


def _check_inception(settings: Settings) -> Iterator[str]:
    usual = (
        REPOSITORY / 'exp/pretrained_model' / INCEPTION_FILE
    )  # where the commands, which run in the repository, look first
    try:
        weights = find_inception_weights(settings.inception_weights or (usual if usual.is_file() else None))
    except ValueError as error:
        yield f'{error} (python tools/download_weights.py inception)'
        return
    wanted = Path(INCEPTION_FILE).stem.rpartition('-')[2]
    if not sha256_of(weights).startswith(wanted) and not settings.allow_mismatch:
        yield f'{weights} is not {INCEPTION_FILE}: its SHA-256 does not begin with {wanted}'


def _check_tokenizer(settings: Settings) -> Iterator[str]:
    path = REPOSITORY / PUBLISHED_FILES[TOKENIZER_FILE].path
    if path.is_file():
        return
    for init in settings.inits:
        if init.format == 'addp' and init.path is not None and init.path.is_file():
            try:
                inside = holds_tokenizer(read_checkpoint(init.path))
            except CheckpointError as error:
                yield str(error)
                continue
            if not inside:
                yield (
                    f'{path} does not exist, and {init.path} holds no tokenizer: '
                    f'python tools/download_weights.py {TOKENIZER_FILE}'
                )
