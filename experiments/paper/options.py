"""The command-line options of ``tools/reproduce.py``, and what they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.paper.recipes import RECIPES, REPOSITORY
from experiments.paper.rows import ROWS
from experiments.paper.settings import FORMATS, Settings, read_inits, read_options, read_rows

DATA = {
    'imagenet': 'data/imagenet',
    'coco': 'data/coco',
    'ade20k': 'data/ade/ADEChallengeData2016',
    'shapes': 'data/shapes',
}
WORK_DIR = 'work_dirs/reproduce'
DEFAULT_GPUS = 8


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
        help='weights to compare, or random (default: the released checkpoint); may be repeated',
    )
    parser.add_argument('--format', action='append', default=[], choices=FORMATS, help='of each --init but random')
    for name, place in DATA.items():
        parser.add_argument(
            f'--{name}', type=Path, default=REPOSITORY / place, metavar='ROOT', help=f'default: {place}'
        )
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
        data={name: _absolute(getattr(args, name)) for name in DATA},
        tokenizer=str(_absolute(args.tokenizer)) if args.tokenizer else None,
        inception_weights=_absolute(args.inception_weights) if args.inception_weights else None,
        num_images=args.num_images,
        options=read_options(args.cfg_options),
        allow_mismatch=args.allow_protocol_mismatch,
    )


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()
