"""Makes the checkpoint of a partial fine-tuning whole and plain: low-rank differences are added to the weights.

    python tools/merge_checkpoint.py my_streets.py work_dirs/my_streets my_streets.pth
    python tools/test.py my_streets.py my_streets.pth --cfg-options model.backbone.lora=None

CHECKPOINT is one of a training with ``model.backbone.lora`` or ``norms_only``, or any that leaves out its frozen base
(``default_hooks.checkpoint.save_base=False``); the base is read from ``model.backbone.init_cfg`` and has to be the one
of the training. DST has every tensor of the network under its plain name, and what is known of the classes; nothing
else is needed to test it, predict with it, export it or train on from it, without ``lora`` in the config.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import make_parser, run_command

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.predict.merging import merge_checkpoint
from addp_backbone.runtime.option_parsing import ConfigOptions


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('config', help='config that the checkpoint was trained with')
    parser.add_argument('checkpoint', help='its checkpoint, or the work dir of the run: the latest checkpoint')
    parser.add_argument('dst', type=Path, help='checkpoint to write, .pth')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='K=V', help='values of the config, as in training'
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Merges."""
    if args.dst.suffix not in ('.pth', '.pt'):
        raise CheckpointError(f'DST must end in .pth or .pt, got {args.dst}')
    merged = merge_checkpoint(args.config, args.checkpoint, args.dst, args.cfg_options)
    print(f'read      {merged.source}')
    print(f'merged    {merged.num_layers} layers with low-rank differences, {merged.num_from_base} tensors of the base')
    print(f'written   {args.dst}')
    if merged.num_layers:
        print('use it with --cfg-options model.backbone.lora=None')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
