"""Time and memory of a ViT-B computed by timm, in ViTDet's windows, against ADDPViT.

    python -m tools.benchmark.timm_vit --mode forward        # ViT-B, 1024 px, windows of 14, float32
    python -m tools.benchmark.timm_vit --mode train          # forward + backward
    python -m tools.benchmark.timm_vit --mode checkpoint     # both with activation checkpointing
    python -m tools.benchmark.timm_vit --mode bf16           # both in bfloat16 autocast

Both have random weights and no drop path; ADDPViT is measured with relative positions, as in fine-tuning, and without
them, as TimmViT's ``vit_base_patch16_224`` is. What they compute differs: TimmViT has a class token, seen in every
window, and smaller windows at the edges, where ADDPViT pads. What is shared (--json too): pairs.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from addp_backbone import ADDPViT, TimmViT
from tools.benchmark.pairs import BenchmarkRow, Call, add_arguments, measure, print_row, time_row
from tools.command_line import make_parser, run_command

WINDOW_SIZE = 14
SMOKE_IMG_SIZE = 240
WORK = dict(
    forward='forward, fp32',
    train='forward + backward, fp32',
    checkpoint='forward + backward, fp32, activation checkpointing',
    bf16='forward + backward, bf16 autocast',
)


@dataclass(frozen=True)
class Job:
    """What to compute.

    Attributes:
        mode: Key of ``WORK``.
        img_size: Side of the image, in pixels.
        arch: Name of the network's size for ADDPViT.
        model: timm's name of the same size.
    """

    mode: str = 'train'
    img_size: int = 1024
    arch: str = 'base'
    model: str = 'vit_base_patch16_224'


def prepare_timm(job: Job) -> Call:
    """Side: TimmViT."""
    torch.manual_seed(0)
    vit = TimmViT(
        job.model, img_size=job.img_size, window_size=WINDOW_SIZE, global_attn_indices='auto', with_cp=_with_cp(job)
    )
    return _prepare(job, vit)


def prepare_addp(job: Job, rel_pos: bool) -> Call:
    """Side: ADDPViT."""
    torch.manual_seed(0)
    vit = ADDPViT(job.arch, img_size=job.img_size, window_size=WINDOW_SIZE, rel_pos=rel_pos, with_cp=_with_cp(job))
    return _prepare(job, vit)


def _with_cp(job: Job) -> bool:
    return job.mode == 'checkpoint'


def _prepare(job: Job, vit: nn.Module) -> Call:
    images = torch.randn(1, 3, job.img_size, job.img_size, generator=torch.Generator().manual_seed(1))

    def call() -> list[float]:
        with (
            torch.autocast('cpu', torch.bfloat16, enabled=job.mode == 'bf16'),
            torch.set_grad_enabled(job.mode != 'forward'),
        ):
            loss = vit(images)[-1].float().square().mean()
        if job.mode != 'forward':
            loss.backward()
            vit.zero_grad(set_to_none=True)
        return [float(loss.detach())]

    return call


def measure_row(job: Job, pairs: int, threads: int) -> BenchmarkRow:
    """Measures one row."""
    sides = dict(
        timm=partial(prepare_timm, job),
        plain=partial(prepare_addp, job, rel_pos=False),
        rel_pos=partial(prepare_addp, job, rel_pos=True),
    )
    measured = measure(sides, pairs, threads)
    rel_pos = measured['rel_pos']
    note = (
        'peer: ADDPViT without relative positions; '
        f'with them {rel_pos.time_s:.3g} s, {rel_pos.memory_gb:.2f} GB; other arithmetic, so no difference of results'
    )
    name = f'TimmViT {job.model}, {job.img_size} px, batch 1, windows of {WINDOW_SIZE}, {WORK[job.mode]}'
    return replace(time_row(name, measured['timm'], measured['plain'], threads, '', note), difference=None)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('--mode', choices=WORK, default='train', help='default: %(default)s')
    parser.add_argument('--size', type=int, default=1024, metavar='PX', help='side of the image (default: %(default)s)')
    add_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measures and prints."""
    job = Job(args.mode, args.size)
    if args.smoke:
        job = replace(job, arch='tiny', model='vit_tiny_patch16_224', img_size=SMOKE_IMG_SIZE)
    print_row(measure_row(job, args.pairs, args.threads), args.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
