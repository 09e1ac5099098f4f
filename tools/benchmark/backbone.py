"""Time and memory of the backbone at detection's image sizes, against HF transformers' VitDet.

    python -m tools.benchmark.backbone --mode forward             # ViT-B alone against VitDet's ViT-B, 1024 px, float32
    python -m tools.benchmark.backbone --mode train --pyramid     # forward + backward; only ours has the pyramid
    python -m tools.benchmark.backbone --mode checkpoint          # ours with activation checkpointing, VitDet without
    python -m tools.benchmark.backbone --mode bf16                # ours in bfloat16 autocast, VitDet in float32

Both have the same weights, relative positions included; the loss is the mean square of the map (of every level, added
up, with the pyramid, which VitDet does not have). Both are in train mode without drop path. What is shared (--json
too): pairs.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from addp_backbone import ADDPViT, SimpleFeaturePyramid
from addp_backbone.networks.arch import get_arch
from tools.benchmark.pairs import BenchmarkRow, Call, add_arguments, difference, measure, print_row, time_row
from tools.command_line import make_parser, run_command

PRETRAIN_IMG_SIZE = 256
WINDOW_SIZE = 14
SMOKE_IMG_SIZE = 240  # 15 places a side: windows of 14 need padding
NUM_PLACES = 97  # of a tensor that are compared
# (mode, pyramid) -> goal, as ratios to the same work in float32
GOALS = {
    ('forward', False): '<= 0.55',
    ('forward', True): "<= 0.45 of detectron2's",
    ('train', False): '<= 0.5, memory <= 0.3',
    ('train', True): "<= 0.5, memory <= 0.3 of detectron2's",
    ('checkpoint', False): '<= 0.65, memory <= 0.15',
    ('checkpoint', True): "<= 0.65, memory <= 0.15 of detectron2's",
    ('bf16', False): '<= 0.2, loss within 1e-2',
    ('bf16', True): "<= 0.2 of detectron2's, loss within 1e-2",
}
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
        pyramid: Whether ours has the pyramid behind it.
        img_size: In pixels.
        batch_size: Images.
        arch: Name of the network's size.
    """

    mode: str = 'train'
    pyramid: bool = False
    img_size: int = 1024
    batch_size: int = 1
    arch: str = 'base'

    @property
    def name(self) -> str:
        """How the row is called."""
        parts = f'ViT-{self.arch}' + (' + pyramid' if self.pyramid else '')
        return f'{parts}, {self.img_size} px, batch {self.batch_size}, {WORK[self.mode]}'


def make_backbone(job: Job) -> ADDPViT:
    """Ours, with random weights; zero-initialised tables and biases would hide errors."""
    torch.manual_seed(0)
    vit = ADDPViT(
        job.arch,
        img_size=job.img_size,
        pretrain_img_size=PRETRAIN_IMG_SIZE,
        window_size=WINDOW_SIZE,
        with_cp=job.mode == 'checkpoint',
    )
    for name, parameter in vit.named_parameters():
        if name.endswith(('rel_pos_h', 'rel_pos_w', 'bias')):
            nn.init.normal_(parameter, std=0.02)
    return vit


def make_images(job: Job) -> Tensor:
    """The input of both."""
    return torch.randn(job.batch_size, 3, job.img_size, job.img_size, generator=torch.Generator().manual_seed(1))


def prepare_ours(job: Job) -> Call:
    """Side: ours."""
    vit, images = make_backbone(job), make_images(job)
    neck = SimpleFeaturePyramid(vit.arch.width) if job.pyramid else None

    def call() -> list[float]:
        with (
            torch.autocast('cpu', torch.bfloat16, enabled=job.mode == 'bf16'),
            torch.set_grad_enabled(job.mode != 'forward'),
        ):
            maps = vit(images)
            levels = maps if neck is None else neck(maps)
            loss = torch.stack([level.float().square().mean() for level in levels]).sum()
        return _finish(job, loss, maps[-1], vit.get_parameter('blocks.0.attn.qkv.weight'), [vit, neck])

    return call


def prepare_peer(job: Job) -> Call:
    """Side: VitDet, with the weights of ours."""
    peer, images = make_peer(job), make_images(job)

    def call() -> list[float]:
        with torch.set_grad_enabled(job.mode != 'forward'):
            (features,) = peer(images).feature_maps
            loss = features.square().mean()
        return _finish(job, loss, features, peer.get_parameter('encoder.layer.0.attention.qkv.weight'), [peer])

    return call


def _finish(
    job: Job, loss: Tensor, features: Tensor, weight: Tensor, networks: Sequence[nn.Module | None]
) -> list[float]:
    """Runs the backward pass where wanted; returns the loss, places of the map, and places of a gradient."""
    result = [float(loss.detach()), *_places(features.detach())]
    if job.mode != 'forward':
        loss.backward()
        assert weight.grad is not None
        result += _places(weight.grad / weight.grad.abs().max())  # scaled to about the size of the map's values
        for network in filter(None, networks):
            network.zero_grad(set_to_none=True)
    return result


def _places(tensor: Tensor) -> list[float]:
    return tensor.flatten()[:: tensor.numel() // NUM_PLACES][:NUM_PLACES].float().tolist()


def make_peer(job: Job) -> nn.Module:
    """HF transformers' VitDet with the weights of ours."""
    from transformers import VitDetBackbone, VitDetConfig

    vit, size = make_backbone(replace(job, mode='train')), get_arch(job.arch)
    config = VitDetConfig(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        image_size=job.img_size,
        pretrain_image_size=PRETRAIN_IMG_SIZE,
        patch_size=vit.patch_size,
        window_size=WINDOW_SIZE,
        residual_block_indices=[],
        window_block_indices=[i for i in range(size.depth) if i not in vit.global_attn_indices],
        use_relative_position_embeddings=True,
        use_absolute_position_embeddings=True,
        drop_path_rate=0.0,
    )
    peer = VitDetBackbone(config)
    weights = {}
    for name, tensor in vit.state_dict().items():
        name = name.replace('blocks.', 'encoder.layer.').replace('.attn.', '.attention.')
        name = name.replace('patch_embed.proj', 'embeddings.projection').replace(
            'pos_embed', 'embeddings.position_embeddings'
        )
        if name == 'embeddings.position_embeddings':  # VitDet keeps an entry for cls
            tensor = torch.cat((torch.zeros(1, 1, size.width), tensor), dim=1)
        weights[name] = tensor
    report = peer.load_state_dict(weights, strict=False)
    if report.unexpected_keys or [name for name in report.missing_keys if 'norm' not in name]:
        raise RuntimeError(f'the weights of ours do not fit VitDet of this transformers version: {report}')
    return peer


def measure_row(job: Job, pairs: int, threads: int) -> BenchmarkRow:
    """Measures one row."""
    sides = dict(ours=partial(prepare_ours, job), peer=partial(prepare_peer, job))
    if job.mode == 'bf16':
        sides['fp32'] = partial(prepare_ours, replace(job, mode='train'))
    measured = measure(sides, pairs, threads)
    ours, peer = measured['ours'], measured['peer']
    note = (
        'peer: HF VitDet'
        + (', which has no pyramid' if job.pyramid else '')
        + (' in fp32' if job.mode == 'bf16' else '')
    )
    if job.mode == 'bf16':
        note += f'; loss off by {difference(ours.result[:1], measured["fp32"].result[:1]):.1e} from ours in fp32'
    row = time_row(job.name, ours, peer, threads, GOALS[job.mode, job.pyramid], note)
    if job.pyramid:  # loss and gradients differ, the map does not
        row = replace(row, difference=difference(ours.result[1 : 1 + NUM_PLACES], peer.result[1 : 1 + NUM_PLACES]))
    return row


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('--mode', choices=WORK, default='train', help='default: %(default)s')
    parser.add_argument('--pyramid', action='store_true', help='ours with its pyramid')
    parser.add_argument(
        '--size', type=int, default=1024, metavar='PX', help='side of the images (default: %(default)s)'
    )
    parser.add_argument('--batch', type=int, default=1, metavar='B', help='images (default: %(default)s)')
    add_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measures and prints."""
    job = Job(args.mode, args.pyramid, args.size, args.batch)
    if args.smoke:
        job = replace(job, arch='tiny', img_size=SMOKE_IMG_SIZE, batch_size=1)
    print_row(measure_row(job, args.pairs, args.threads), args.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
