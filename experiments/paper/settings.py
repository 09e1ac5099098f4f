"""What was asked for: model, rows, checkpoints to compare, data, machines; the options of ``tools/reproduce.py``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.locate import find_checkpoint
from addp_backbone.networks.timm_vit.catalogue import family_of
from experiments.paper.recipes import RECIPES, Recipe
from experiments.paper.rows import DENSE_TASKS, GENERATION, PAPER_ROWS, ROWS
from experiments.stages import REPOSITORY, RequestError
from pretrain.weights.published import PUBLISHED_FILES

FORMATS = ('addp', 'mae', 'mage', 'timm')
RANDOM = 'random'
TIMM_VIT = 'TimmViT'  # a model of timm, computed by timm
TIMM_PREFIX = 'timm/'
DATA_ROOTS = {
    'imagenet': 'data/imagenet',
    'coco': 'data/coco',
    'ade20k': 'data/ade/ADEChallengeData2016',
    'shapes': 'data/shapes',
}
WORK_DIR = 'work_dirs/reproduce'
DEFAULT_GPUS = 8


@dataclass(frozen=True)
class Initialization:
    """Weights that training starts from.

    Attributes:
        name: In tables and folders.
        format: One of :data:`FORMATS`, 'random' for none, or 'TimmViT'.
        path: The checkpoint; None for 'random', and where timm fetches the published weights itself.
        timm_model: timm's name of a 'TimmViT'.
    """

    name: str
    format: str
    path: Path | None
    timm_model: str = ''


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        model: A key of ``RECIPES``.
        rows: Keys of ``ROWS``.
        inits: What to compare.
        work_dir: Gets everything that is made.
        num_gpus: Processes of a stage that can use several.
        data: Root by name: imagenet, coco, ade20k; or shapes.
        tokenizer: For generation; None for the checkpoint's own or the config's.
        inception_weights: None for where they usually lie.
        num_images: To generate; None for the protocol's.
        options: ``--cfg-options`` by row.
        allow_mismatch: Go on where the data are not those of the protocol; the table says so.
    """

    model: str
    rows: tuple[str, ...]
    inits: tuple[Initialization, ...]
    work_dir: Path
    num_gpus: int
    data: Mapping[str, Path]
    tokenizer: str | None = None
    inception_weights: Path | None = None
    num_images: int | None = None
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise RequestError(f'--gpus must be at least 1, got {self.num_gpus}')

    @property
    def recipe(self) -> Recipe:
        """Of the model."""
        return RECIPES[self.model]

    @property
    def tasks(self) -> tuple[str, ...]:
        """What has to be run for the rows, in their order."""
        return tuple(dict.fromkeys(ROWS[row].task for row in self.rows))

    def task_options(self, task: str) -> list[str]:
        """``--cfg-options`` of all rows that a task serves."""
        return [option for row, options in self.options.items() if ROWS[row].task == task for option in options]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what to run, on what and where."""
    parser.add_argument(
        '--model', choices=RECIPES, default='base', help='default: %(default)s; tiny: generated shapes, on a CPU'
    )
    parser.add_argument('--rows', metavar='ROW,...', help=f'some of {",".join(ROWS)} (default: those of the paper)')
    parser.add_argument(
        '--init',
        action='append',
        default=[],
        metavar='[NAME=]CKPT',
        help='weights to compare: a file with its --format, timm/MODEL for a ViT of timm as published, timm/MODEL=CKPT '
        'from a file, or random (default: the released checkpoint); may be repeated',
    )
    parser.add_argument(
        '--format', action='append', default=[], choices=FORMATS, help='of each --init but random and timm/...'
    )
    for name, path in DATA_ROOTS.items():
        parser.add_argument(f'--{name}', type=Path, default=REPOSITORY / path, metavar='ROOT', help=f'default: {path}')
    parser.add_argument('--gpus', type=int, metavar='N', help=f'default: {DEFAULT_GPUS}; tiny: 1 process')
    parser.add_argument(
        '--work-dir', type=Path, default=REPOSITORY / WORK_DIR, metavar='DIR', help=f'default: {WORK_DIR}'
    )
    parser.add_argument(
        '--tokenizer',
        type=Path,
        metavar='CKPT',
        help="for generation (default: the checkpoint's own, else the released one)",
    )
    parser.add_argument(
        '--inception-weights', type=Path, metavar='W.pth', help='default: looked for in exp/pretrained_model'
    )
    parser.add_argument('--num-images', type=int, metavar='N', help="to generate (default: the protocol's)")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        default=[],
        metavar='ROW:K=V',
        help="changes a row's recipe; the table says so",
    )
    parser.add_argument(
        '--allow-protocol-mismatch', action='store_true', help='go on with other data; the table says so'
    )


def read_settings(args: argparse.Namespace) -> Settings:
    """What was asked for; paths absolute, as commands run in the repository.

    Raises:
        RequestError: If options do not go together.
    """
    inits = read_inits(args.init, args.format, args.model)
    return Settings(
        model=args.model,
        rows=read_rows(args.rows, inits),
        inits=inits,
        work_dir=_absolute(args.work_dir),
        num_gpus=args.gpus if args.gpus is not None else 1 if args.model == 'tiny' else DEFAULT_GPUS,
        data={name: _absolute(getattr(args, name)) for name in DATA_ROOTS},
        tokenizer=str(_absolute(args.tokenizer)) if args.tokenizer else None,
        inception_weights=_absolute(args.inception_weights) if args.inception_weights else None,
        num_images=args.num_images,
        options=read_options(args.cfg_options),
        allow_mismatch=args.allow_protocol_mismatch,
    )


def read_rows(text: str | None, inits: Sequence[Initialization]) -> tuple[str, ...]:
    """Rows from ``fid,is,...``; None for those of the paper that the checkpoints have.

    Raises:
        RequestError: If a row is unknown, or none of the checkpoints can have it.
    """
    generates = any(init.format == 'addp' for init in inits)
    if text is None:
        return tuple(row for row in PAPER_ROWS if any(can_have(init, ROWS[row].task) for init in inits))
    rows = tuple(dict.fromkeys(word.strip() for word in text.split(',') if word.strip()))
    unknown = [row for row in rows if row not in ROWS]
    if unknown or not rows:
        raise RequestError(
            f'--rows {text}: unknown {", ".join(unknown) or "(none given)"}, wanted some of {",".join(ROWS)}'
        )
    if not generates and any(ROWS[row].task == GENERATION for row in rows):
        raise RequestError(f'--rows {text}: FID and IS need a checkpoint of ADDP, but --format has none')
    impossible = [row for row in rows if not any(can_have(init, ROWS[row].task) for init in inits)]
    if impossible:
        raise RequestError(
            f'--rows {text}: {TIMM_PREFIX}MODEL has rows {",".join(_timm_rows())}, not {",".join(impossible)}; the '
            "classifier is ADDP's own (give the file with --format timm, where convert_checkpoint.py takes it)"
        )
    return rows


def can_have(init: Initialization, task: str) -> bool:
    """Whether an initialisation can be measured on a task: only ADDP's generate, and TimmViT serves dense tasks."""
    if task == GENERATION:
        return init.format == 'addp'
    return init.format != TIMM_VIT or task in DENSE_TASKS


def _timm_rows() -> list[str]:
    return [name for name, row in ROWS.items() if row.task in DENSE_TASKS]


def read_inits(words: Sequence[str], formats: Sequence[str], model: str) -> tuple[Initialization, ...]:
    """Checkpoints from ``--init [NAME=]CKPT`` and ``--format``, a format each; 'random' and 'timm/MODEL' have none.

    Without any it is the model's released file.

    Raises:
        RequestError: If a format is missing or too many, names repeat, timm has no such plain ViT, or there is no
            released file.
    """
    released = RECIPES[model].released
    if not words:
        if not released:
            raise RequestError(
                f'--model {model} has no released checkpoint: give --init CKPT --format addp and, to compare, '
                '--init random'
            )
        return (Initialization(released, 'addp', REPOSITORY / PUBLISHED_FILES[released].path),)
    given = [word for word in words if word != RANDOM and not word.startswith(TIMM_PREFIX)]
    if len(formats) != len(given):
        raise RequestError(
            f'{len(given)} checkpoints (--init) but {len(formats)} formats: give --format {"|".join(FORMATS)} after '
            f'each; {RANDOM} and {TIMM_PREFIX}MODEL have none'
        )
    kinds = iter(formats)
    inits = [_read_init(word) or _named(word, next(kinds)) for word in words]
    names = [init.name for init in inits]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise RequestError(f'two checkpoints are called {", ".join(repeated)}: give names, --init NAME=CKPT')
    return tuple(inits)


def read_options(pairs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``--cfg-options ROW:K=V``, by row.

    Raises:
        RequestError: If one does not begin with a row.
    """
    options: dict[str, list[str]] = {}
    for pair in pairs:
        row, colon, option = pair.partition(':')
        if row not in ROWS or not colon or '=' not in option:
            raise RequestError(
                f'--cfg-options {pair}: wanted ROW:KEY=VALUE with ROW one of {", ".join(ROWS)}, '
                'e.g. ap:model.backbone.with_cp=True'
            )
        options.setdefault(row, []).append(option)
    return {row: tuple(found) for row, found in options.items()}


def _read_init(word: str) -> Initialization | None:
    """'random', ``timm/MODEL`` or ``timm/MODEL=CKPT``; None for anything else."""
    if word == RANDOM:
        return Initialization(RANDOM, RANDOM, None)
    if not word.startswith(TIMM_PREFIX):
        return None
    model, _, file = word.removeprefix(TIMM_PREFIX).partition('=')
    try:
        family_of(model)
    except ValueError as error:
        raise RequestError(f'--init {word}: {error}; a file in a folder {TIMM_PREFIX} is ./{word}') from error
    return Initialization(model, TIMM_VIT, _absolute(Path(file)) if file else None, model)


def _named(word: str, format: str) -> Initialization:
    name, equals, rest = word.partition('=')
    if equals and '/' not in name:
        path = Path(rest)
    else:
        path, name = Path(word), ''
    path = path.expanduser().absolute()
    if path.is_dir():
        try:
            name, path = name or path.name, find_checkpoint(path, '--init').absolute()
        except CheckpointError as error:
            raise RequestError(str(error)) from error
    name = re.sub(r'[^\w.-]+', '-', name or path.name.removesuffix(path.suffix))
    return Initialization(name, format, path)


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()
