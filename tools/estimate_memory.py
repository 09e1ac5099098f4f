"""Estimates by formula which GPU memory a detector's training takes; nothing is measured, no GPU is needed.

    python tools/estimate_memory.py                                # ViT-B, L and H on 8 cards, as a table
    python tools/estimate_memory.py --arch large --images 4 --cards 8 --fp32

What is counted and what is assumed: addp_backbone/networks/training_memory.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from command_line import make_parser, run_command

from addp_backbone.networks.arch import PRESETS
from addp_backbone.networks.training_memory import GIB, RESERVED_GIB, estimate


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('--arch', nargs='+', choices=sorted(PRESETS), default=['base', 'large', 'huge'])
    parser.add_argument('--images', type=int, default=8, metavar='N', help='of a card in a step (default: %(default)s)')
    parser.add_argument('--img-size', type=int, default=1024, metavar='PX', help='default: %(default)s')
    parser.add_argument('--cards', type=int, default=8, metavar='N', help='that FSDP shares by (default: %(default)s)')
    parser.add_argument('--fp32', action='store_true', help='without mixed precision')
    args = parser.parse_args(argv)
    for name in ('images', 'img_size', 'cards'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} is {getattr(args, name)}, wanted a positive number')
    return args


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    print(
        f'GiB on each card, {args.images} images of {args.img_size} px, {"fp32" if args.fp32 else "16 bits"}; estimates'
    )
    print('| ViT | weights, gradients, AdamW (DDP / FSDP) | activations (with_cp) | DDP (with_cp) | FSDP (with_cp) |')
    print('|---|---|---|---|---|')
    for arch in args.arch:
        print(_row(arch, args))
    print(
        f'Totals have {RESERVED_GIB:g} GiB for CUDA, workspaces, NCCL, temporaries and fragmentation, which is assumed.'
    )


def _row(arch: str, args: argparse.Namespace) -> str:
    """A line of the table."""
    states, totals, kept = [], [], []
    for shards in (1, args.cards):
        plain, checkpointed = (
            estimate(arch, args.images, args.img_size, not args.fp32, with_cp, shards) for with_cp in (False, True)
        )
        states.append(f'{(plain.parameters + plain.gradients + plain.optimizer) / GIB:.1f}')
        totals.append(f'{plain.total_gib:.0f} ({checkpointed.total_gib:.0f})')
        kept = [f'{plain.activations / GIB:.1f}', f'({checkpointed.activations / GIB:.1f})']
    return f'| {arch} | {" / ".join(states)} | {" ".join(kept)} | {totals[0]} | {totals[1]} |'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
