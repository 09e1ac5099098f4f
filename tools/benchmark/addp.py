"""Time and memory of ADDP's training step and of generation, against the same in plain PyTorch (plain_addp.py).

    python -m tools.benchmark.addp --mode step                  # ViT-B, batch 4, 256 px, float32 everywhere
    python -m tools.benchmark.addp --mode step --bf16           # frozen networks in bfloat16, the other in autocast
    python -m tools.benchmark.addp --mode generate              # one image, 20 cosine steps, float32
    python -m tools.benchmark.addp --mode generate --bf16

Both sides have the same weights; the peer is always in float32. A training step is forward + backward, without the
optimizer's share, which is torch's on both sides. --dropout 0 makes both compute the same numbers, whose difference is
then printed. What is shared (--json too): pairs.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import ADDP
from pretrain.generation.sampling import image_generator
from pretrain.generation.trajectory import generate
from pretrain.weights.generator import precision
from tools.benchmark.pairs import BenchmarkRow, Call, add_arguments, measure, print_row, time_row
from tools.benchmark.plain_addp import PlainADDP
from tools.benchmark.plain_tokenizer import Sizes
from tools.command_line import make_parser, run_command

SMOKE = Sizes(
    width=32,
    depth=1,
    num_heads=2,
    decoder_depth=1,
    decoder_num_heads=4,
    img_size=32,
    patch_size=8,
    base_channels=32,
    channel_multipliers=(1, 1, 1, 1),
    num_res_blocks=1,
    latent_channels=16,
    num_codes=64,
)
MASK_RATIOS = 0.7, 0.75  # of m_t and m_{t+1}: about the mean of the training's distribution
GOALS = {
    ('step', False): '<= 0.75',
    ('step', True): '<= 0.25',
    ('generate', False): '<= 0.8',
    ('generate', True): '<= 0.25',
}
NUM_PLACES = 97  # of a tensor that are compared


@dataclass(frozen=True)
class Job:
    """What to compute.

    Attributes:
        mode: 'step' or 'generate'.
        bf16: Whether ours runs in bfloat16.
        batch_size: Images.
        steps: Of generation.
        sizes: Of the networks.
    """

    mode: str
    bf16: bool
    batch_size: int
    steps: int = 20
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def name(self) -> str:
        """How the row is called."""
        kind = 'training step' if self.mode == 'step' else f'generation, {self.steps} steps'
        numbers = 'fp32' if not self.bf16 else 'bf16, trained network autocast' if self.mode == 'step' else 'bf16'
        return f'ADDP {kind}, width {self.sizes.width}, {self.sizes.img_size} px, batch {self.batch_size}, {numbers}'


def make_model(sizes: Sizes, frozen_dtype: str | None = None) -> ADDP:
    """Ours, with random weights."""
    torch.manual_seed(0)
    size: dict[str, Any] = dict(
        arch=dict(width=sizes.width, depth=sizes.depth, num_heads=sizes.num_heads),
        decoder_depth=sizes.decoder_depth,
        decoder_num_heads=sizes.decoder_num_heads,
    )
    tokenizer = {
        name: getattr(sizes, name)
        for name in ('base_channels', 'channel_multipliers', 'num_res_blocks', 'latent_channels', 'num_codes')
    }
    model = ADDP(
        **size,
        img_size=sizes.img_size,
        patch_size=sizes.patch_size,
        tokenizer=tokenizer,
        token_predictor=size,
        dropout=sizes.dropout,
        frozen_dtype=frozen_dtype,
    )
    nn.init.normal_(model.tokenizer.codebook, std=0.3)  # a fresh one is all but a single point
    model.tokenizer.lay_out()
    return model


def make_batch(job: Job) -> tuple[Tensor, Tensor, Tensor]:
    """Images, m_t and m_{t+1}."""
    generator = torch.Generator().manual_seed(1)
    places = job.sizes.side**2
    images = torch.rand(job.batch_size, 3, job.sizes.img_size, job.sizes.img_size, generator=generator)
    ranks = torch.rand(job.batch_size, places, generator=generator).argsort(1).argsort(1)
    return images, ranks < places * MASK_RATIOS[0], ranks < places * MASK_RATIOS[1]


def prepare_ours(job: Job) -> Call:
    """Side: ours."""
    if job.mode == 'generate':
        model = make_model(job.sizes).eval()

        def sample() -> list[float]:
            with precision(model, 'bf16' if job.bf16 else 'fp32'):
                return _places(generate(model, job.batch_size, job.steps, generator=_generators(job)))

        return sample
    model, batch = make_model(job.sizes, 'bfloat16' if job.bf16 else None), make_batch(job)

    def step() -> list[float]:
        with torch.autocast('cpu', torch.bfloat16, enabled=job.bf16):
            loss = model(*batch)
        return _finish_step(loss, model, model.get_parameter('blocks.0.attn.qkv.weight'))

    return step


def prepare_peer(job: Job) -> Call:
    """Side: plain PyTorch."""
    ours, model, batch = make_model(job.sizes), PlainADDP(job.sizes), make_batch(job)
    weights = ours.state_dict()
    for name in ('tokenizer', 'token_predictor'):
        frozen = ours.get_submodule(name)
        weights.update({f'{name}.{key}': value for key, value in frozen.state_dict().items()})
        model.get_submodule(name).requires_grad_(False)
    model.load_state_dict(weights)
    model.token_predictor.eval()
    if job.mode == 'generate':
        model.eval()
        return lambda: _places(model.generate(job.steps, _generators(job)))
    return lambda: _finish_step(model.training_loss(*batch), model, model.get_parameter('blocks.0.attn.qkv.weight'))


def _generators(job: Job) -> list[torch.Generator]:
    return [image_generator(0, index) for index in range(job.batch_size)]


def _finish_step(loss: Tensor, model: nn.Module, weight: Tensor) -> list[float]:
    """The backward pass; returns the loss and places of a gradient."""
    loss.backward()
    assert weight.grad is not None
    result = [float(loss.detach()), *_places(weight.grad / weight.grad.abs().max())]
    model.zero_grad(set_to_none=True)
    return result


def _places(tensor: Tensor) -> list[float]:
    return tensor.flatten()[:: tensor.numel() // NUM_PLACES][:NUM_PLACES].float().tolist()


def measure_row(job: Job, pairs: int, threads: int) -> BenchmarkRow:
    """Measures one row."""
    measured = measure(dict(ours=partial(prepare_ours, job), peer=partial(prepare_peer, job)), pairs, threads)
    note = 'peer: plain PyTorch in fp32'
    row = time_row(
        job.name,
        measured['ours'],
        measured['peer'],
        threads,
        GOALS[job.mode, job.bf16],
        note,
        's/image',
        job.batch_size,
    )
    comparable = not job.bf16 and (job.mode == 'generate' or job.sizes.dropout == 0)
    return row if comparable else replace(row, difference=None)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('--mode', choices=('step', 'generate'), default='step', help='default: %(default)s')
    parser.add_argument('--bf16', action='store_true', help='ours in bfloat16')
    parser.add_argument('--batch', type=int, metavar='B', help='images (default: 4 for a step, 1 for generation)')
    parser.add_argument(
        '--dropout', type=float, default=0.1, metavar='P', help='of the trained network (default: %(default)s)'
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measures and prints."""
    sizes = replace(SMOKE if args.smoke else Sizes(), dropout=args.dropout)
    batch_size = args.batch or (4 if args.mode == 'step' else 1)
    print_row(
        measure_row(Job(args.mode, args.bf16, batch_size, 3 if args.smoke else 20, sizes), args.pairs, args.threads),
        args.json,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
