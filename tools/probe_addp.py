"""Tells whether an ADDP's encoder has learned anything.

    python tools/probe_addp.py pretrain/configs/addp_tiny.py work_dirs/addp_tiny
    python tools/probe_addp.py CONFIG CKPT --num-images 1024 --cfg-options train_dataloader.dataset.data_root=MY/IMAGES

The loss does not show it, as the decoder can lower it with the tokens alone.

CONFIG is a pre-training config of ADDP that names the tokenizer and the token predictor, CKPT a checkpoint (or work
dir) of that training or a released file. Images come from the config's training set, with its augmentation, in the same
way each time. Printed: cross entropies against the token predictor's distribution at masked places, in nats.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from command_line import make_parser, run_command

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from torch import Tensor

from addp_backbone.files.atomic import replace_file
from addp_backbone.runtime.launch import load_config
from addp_backbone.runtime.option_parsing import ConfigOptions
from pretrain.networks.mask_schedule import masks_at_ratio
from pretrain.training.encoder_use import EncoderUse, measure_encoder_use
from pretrain.training.hooks import pick_images
from pretrain.training.models import ADDPPretraining
from pretrain.weights.generator import require_addp

BATCH_SIZE = 32


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('config', help='pre-training config of ADDP')
    parser.add_argument('checkpoint', help="checkpoint of the config's training, its work dir, or a released file")
    parser.add_argument('--num-images', type=int, default=256, metavar='N', help='default: %(default)s')
    parser.add_argument(
        '--mask-ratio', type=float, default=0.5, metavar='R', help='share of masked places (default: %(default)s)'
    )
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='also write the figures there')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='K=V', help='replaces values of the config'
    )
    args = parser.parse_args(argv)
    if args.num_images < 2 or not 0 < args.mask_ratio <= 1:
        parser.error(
            f'--num-images must be at least 2 and --mask-ratio in (0, 1], got {args.num_images} and {args.mask_ratio}'
        )
    return args


def build_model(cfg: Config, checkpoint: str) -> ADDPPretraining:
    """The config's model with the weights of all three networks."""
    require_addp(cfg)
    cfg.model.init_cfg = dict(cfg.model.get('init_cfg') or {}, addp=checkpoint)
    model: ADDPPretraining = MODELS.build(cfg.model)
    model.init_weights()
    return model.to('cuda' if torch.cuda.is_available() else 'cpu')


def batches(images: Tensor, num_tokens: int, ratio: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images with their masks in batches whose sizes differ by one at most, so that none has a single image."""
    generator = torch.Generator().manual_seed(0)
    for part in images.tensor_split(-(-len(images) // BATCH_SIZE)):
        mask, noisier_mask = masks_at_ratio(ratio, len(part), num_tokens, generator)
        yield part, mask.to(part.device), noisier_mask.to(part.device)


def describe(use: EncoderUse) -> str:
    """The table that is printed."""

    def share(value: float | None, words: str) -> str:
        return 'no share, as there is next to nothing to learn' if value is None else f'{value:.0%} {words}'

    rows = [
        f"{use.least:7.3f}  the target's own entropy: no prediction is better",
        f'{use.addp:7.3f}  ADDP: {share(use.learned, "of what there is to learn")}',
        f'{use.without_tokens:7.3f}  the tokens hidden from the decoder, the encoder alone: '
        f'{share(use.learned_by_encoder, "of it")}',
        f"{use.other_image:7.3f}  the encoder's output of another image: "
        f'{share(use.lost_without_encoder, "of it lost")}',
        f'{use.most:7.3f}  the mean target at every place: nothing learned',
    ]
    if use.learned is None:
        rows.append(
            f"The token predictor's distribution is all but the same everywhere ({use.learnable:.3f} nats between the "
            'first and the last figure): nothing can be learned from it. Train the token predictor longer.'
        )
    return '\n'.join(rows)


def run(args: argparse.Namespace) -> None:
    """Measures, prints and writes the figures."""
    cfg = load_config(args.config, args.cfg_options)
    model = build_model(cfg, args.checkpoint)
    images = pick_images(DATASETS.build(cfg.train_dataloader.dataset), args.num_images, model)
    use = measure_encoder_use(model.addp, batches(images, model.addp.num_tokens, args.mask_ratio))
    print(
        f'cross entropy against the target, in nats ({len(images)} images, {args.mask_ratio:.0%} masked)\n'
        f'{describe(use)}'
    )
    if args.out:
        shares = dict(
            learned=use.learned,
            learned_by_encoder=use.learned_by_encoder,
            lost_without_encoder=use.lost_without_encoder,
        )
        replace_file(args.out, json.dumps({**asdict(use), **shares}, indent=2) + '\n')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
