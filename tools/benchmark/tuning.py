"""Memory of training a part of the backbone, by counting: trained parameters, their optimizer state, kept activations.

    python -m tools.benchmark.tuning                      # ADDPViT-B and TimmViT, 512 px, a row for each part

Nothing is timed, so that it may run beside other work. Activations are what one forward pass in float32 keeps for its
backward pass, each storage once, parameters not counted; head and neck, which all rows share, are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import addp_backbone  # noqa: F401  (registers the backbones)
from tools.command_line import make_parser, run_command

MIB = 1 << 20
STATE_BYTES = 12  # of a trained parameter: gradient and AdamW's two moments, float32
BACKBONES: dict[str, dict[str, Any]] = {
    'ADDPViT-B': dict(type='ADDPViT', arch='base'),
    'TimmViT, DINOv2 ViT-S/14': dict(type='TimmViT', model='vit_small_patch14_dinov2', stride=16),
}
PARTS: dict[str, dict[str, Any]] = {
    'everything': {},
    'last six of twelve blocks': dict(frozen=6),
    'LoRA of rank 8, attention': dict(lora=dict(rank=8)),
    'LoRA of rank 8, attention and MLP': dict(lora=dict(rank=8, mlp=True)),
    'LoRA of rank 8 in the last six blocks': dict(lora=dict(rank=8), frozen=6),
    'norms': dict(norms_only=True),
    'nothing': dict(frozen=True),
}


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that a forward pass keeps for its backward pass, without the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), images)}
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        maps = model(images)  # held, or storages would be freed and their addresses used again
    del maps
    return sum(storages.values())


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('--img-size', type=int, default=512, metavar='PX', help='side of the image (%(default)s)')
    parser.add_argument('--with-cp', action='store_true', help='activation checkpointing of the trained blocks')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Prints a table."""
    print(
        '| backbone | trained | parameters | gradients and AdamW, MiB | kept activations, MiB |\n|---|---|---|---|---|'
    )
    images = torch.randn(1, 3, args.img_size, args.img_size)
    for name, options in BACKBONES.items():
        for part, tuning in PARTS.items():
            model = MODELS.build(dict(options, img_size=args.img_size, with_cp=args.with_cp, **tuning)).train()
            count = sum(param.numel() for param in model.parameters() if param.requires_grad)
            kept = kept_bytes(model, images)
            print(f'| {name} | {part} | {count:,} | {count * STATE_BYTES / MIB:.1f} | {kept / MIB:.0f} |', flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
