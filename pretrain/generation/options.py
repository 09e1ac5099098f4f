"""The command-line options that tools/generate.py and tools/edit.py share: model and sampling."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from addp_backbone.runtime.launch import load_config
from addp_backbone.runtime.option_parsing import ConfigOptions
from pretrain.generation.sampling import SCHEDULES, Sampling
from pretrain.networks.addp import ADDP
from pretrain.weights.generator import PRECISIONS, load_generator


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of model and sampling."""
    parser.add_argument('config', help='pre-training config of ADDP')
    parser.add_argument('checkpoint', help="released file, checkpoint of the config's training, or its work dir")
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder to write')
    parser.add_argument('--steps', type=int, default=20, help='default: %(default)s')
    parser.add_argument(
        '--schedule',
        choices=SCHEDULES,
        default='cosine',
        help='how the share of masked tokens falls (default: %(default)s)',
    )
    parser.add_argument(
        '--temperature',
        type=float,
        default=6.0,
        help='weight of the noise when tokens are masked again (default: %(default)s)',
    )
    parser.add_argument('--static-temperature', action='store_true', help='constant instead of falling to 0')
    parser.add_argument('--top-p', type=float, metavar='P', help='nucleus sampling: codes that hold this probability')
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32', help='default: %(default)s')
    parser.add_argument(
        '--ema', action=argparse.BooleanOptionalAction, help='averaged weights (default: if the checkpoint has them)'
    )
    parser.add_argument(
        '--tokenizer', help="the tokenizer's file or work dir (default: CKPT's own, else model.init_cfg.tokenizer)"
    )
    parser.add_argument(
        '--threads',
        type=int,
        default=1,
        metavar='T',
        help='CPU threads of a process (default: %(default)s, as '
        'rounding depends on it; on a CPU tools/dist_generate.sh makes better use of the cores)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='K=V', help='replaces values of the config'
    )


def read_sampling(args: argparse.Namespace) -> Sampling:
    """The sampling settings of the parsed options."""
    return Sampling(args.steps, args.schedule, args.temperature, not args.static_temperature, args.top_p)


def read_model(args: argparse.Namespace) -> ADDP:
    """The model of the parsed options, on the CPU; also sets the number of CPU threads.

    Raises:
        ValueError: If an option, the config or the checkpoint is not what is needed.
    """
    if args.threads < 1:
        raise ValueError(f'--threads must be at least 1, got {args.threads}')
    torch.set_num_threads(args.threads)
    return load_generator(load_config(args.config, args.cfg_options), args.checkpoint, args.ema, args.tokenizer)
