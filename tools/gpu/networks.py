"""Checks of networks, GPU against CPU: the backbone, activation checkpointing, tokens, adaptive weight, generation."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.networks.addp import ADDP
from tools.gpu.measuring import DTYPES, autocast, largest_error, precisions, relative_error, time_ms, wait_for
from tools.gpu.report import Report

GOLDEN = Path(__file__).resolve().parents[2] / 'tests' / 'golden'
GOLDEN_SIZES, GOLDEN_TOLERANCE = ('160x160', '128x192', '176x96'), 1e-4
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
NOISE_FACTOR, LEAST_NOISE = 3, 1e-7
TOKENS_EQUAL, GENERATED_EQUAL = 0.999, 0.99
ADAPTIVE_TOLERANCE = 0.02


def backbone(device: torch.device, report: Report) -> None:
    """Check 5: ViTDet's golden values on the device; ViT-B at 512 px, device against CPU."""
    from addp_backbone import ADDPViT

    _golden_vitdet(device, report)
    torch.manual_seed(0)
    big = device.type == 'cuda'
    side = 512 if big else 128
    model = ADDPViT('base' if big else _SMALL, img_size=side, window_size=14 if big else 3)
    _fill_zeros(model)
    images = torch.randn(1, 3, side, side)
    wanted = _output_and_gradients(model, images)
    got = _output_and_gradients(copy.deepcopy(model).to(device), images.to(device))
    report.at_most('output, against the CPU', relative_error(got[0], wanted[0]), OUTPUT_TOLERANCE)
    worst = largest_error(got[1:], wanted[1:])
    report.at_most('largest error of a gradient', worst, GRADIENT_TOLERANCE)
    report.figure = f'golden {report.values["golden"]:.1e}, gradients {worst:.1e}'


_SMALL = dict(width=48, depth=2, num_heads=3)


def _golden_vitdet(device: torch.device, report: Report) -> None:
    """detectron2's tiny ViTDet: last map, pyramid, loss and gradients."""
    from safetensors.torch import load_file

    from addp_backbone import ADDPViT, SimpleFeaturePyramid
    from addp_backbone.checkpoint.convert import convert_state_dict

    config = json.loads((GOLDEN / 'vitdet_tiny.json').read_text(encoding='utf-8'))
    converted = convert_state_dict(load_file(GOLDEN / 'vitdet_tiny.weights.safetensors'), 'detectron2')
    outputs = load_file(GOLDEN / 'vitdet_tiny.outputs.safetensors')
    arch = dict(width=config['embed_dim'], depth=config['depth'], num_heads=config['num_heads'])
    worst = 0.0
    for size in GOLDEN_SIZES:
        vit = ADDPViT(arch, img_size=config['img_size'], window_size=config['window_size'])
        neck = SimpleFeaturePyramid(config['embed_dim'], config['out_channels'])
        vit.load_state_dict(converted.state_dict)
        neck.load_state_dict(converted.neck_state_dict)
        vit, neck = vit.to(device), neck.to(device)
        wanted = {name.removeprefix(f'{size}.'): x for name, x in outputs.items() if name.startswith(size)}
        (last,) = vit(wanted['image'].to(device))
        levels = neck((last,))
        sum(level.square().mean() for level in levels).backward()
        pairs = [(last, wanted['last_feat']), *((level, wanted[f'p{i}']) for i, level in enumerate(levels, 2))]
        for name, grad in wanted.items():
            if name.startswith('grad.net.'):
                name = name.removeprefix('grad.net.')
                pairs.append((vit.get_parameter(name).grad, grad[:, 1:] if name == 'pos_embed' else grad))
        for got, want in pairs:
            got = got.detach().cpu()
            worst = max(worst, float((got - want).abs().max() / want.abs().max()))
    report.at_most('golden', worst, GOLDEN_TOLERANCE)


def _fill_zeros(model: nn.Module) -> None:
    """Makes zero-initialised tables and biases random, where errors would hide."""
    for name, parameter in model.named_parameters():
        if name.endswith(('rel_pos_h', 'rel_pos_w', 'bias')):
            nn.init.normal_(parameter, std=0.02)


def _output_and_gradients(model: nn.Module, images: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The last map and the gradients of all parameters, which start without."""
    model.zero_grad(set_to_none=True)
    with autocast(images.device, dtype):
        out = model(images)[-1].float()
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def checkpointing(device: torch.device, report: Report) -> None:
    """Check 6: activation checkpointing changes gradients no more than running twice does."""
    from addp_backbone import ADDPViT

    torch.manual_seed(0)
    size, side = ('base', 512) if device.type == 'cuda' else (_SMALL, 128)
    model = ADDPViT(size, img_size=side).to(device)
    _fill_zeros(model)
    images = torch.randn(1, 3, side, side, device=device)
    for dtype in precisions(device):
        model.with_cp = False
        first, second = (_output_and_gradients(model, images, dtype) for _ in range(2))
        model.with_cp = True
        checkpointed = _output_and_gradients(model, images, dtype)
        noise, error = largest_error(second, first), largest_error(checkpointed, first)
        report.note(f'noise of two equal runs, {DTYPES[dtype]}', noise)
        report.at_most(f'with checkpointing, {DTYPES[dtype]}', error, NOISE_FACTOR * noise + LEAST_NOISE)
        report.figure = f'{DTYPES[dtype]}: {error:.1e}, noise {noise:.1e}'


def tokens(device: torch.device, report: Report) -> None:
    """Check 8: tokens of images, device against CPU: float32 must agree, other precisions are reported."""
    from pretrain.networks.tokenizer import VQGANTokenizer

    torch.manual_seed(0)
    if device.type == 'cuda':
        tokenizer = VQGANTokenizer().eval()
    else:
        tokenizer = VQGANTokenizer(32, channel_multipliers=(1, 2, 2), num_res_blocks=1, latent_channels=32).eval()
    side = 256 if device.type == 'cuda' else 64
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 16, 16), (side, side), mode='bilinear')
    with torch.no_grad():
        latents = tokenizer.encode_continuous(images)
        nn.init.normal_(tokenizer.codebook)  # as spread as the latents are, or all tokens would be one
        tokenizer.codebook.mul_(latents.std()).add_(latents.mean())
        wanted = tokenizer.quantize(latents).tokens
        report.note('different tokens', len(wanted.unique()))
        tokenizer, images = tokenizer.to(device), images.to(device)

        def share_equal() -> float:
            return float((tokenizer.encode(images).tokens.cpu() == wanted).float().mean())

        report.at_least('equal in float32', share_equal(), TOKENS_EQUAL)
        tokenizer.lay_out()
        report.note('equal in float32, channels-last', share_equal())
        if device.type == 'cuda':
            torch.backends.cudnn.allow_tf32 = True
            report.note('equal with TF32', share_equal())
            torch.backends.cudnn.allow_tf32 = False
        for dtype in precisions(device)[1:]:
            with autocast(device, dtype):
                report.note(f'equal under autocast, {DTYPES[dtype]}', share_equal())
        for dtype in precisions(device)[1:]:
            tokenizer.set_precision(dtype)
            report.note(f'equal with weights in {DTYPES[dtype]}', share_equal())
    shares = {name.removeprefix('equal '): value for name, value in report.values.items() if name.startswith('equal')}
    report.figure = ', '.join(f'{name} {value:.2%}' for name, value in shares.items())


def adaptive_weight_in_half(device: torch.device, report: Report) -> None:
    """Check 9: the tokenizer's adaptive weight in float16 is within 2 % of float32's, whatever the batch."""
    from torch.nn import functional as F

    from pretrain.training.tokenizer_objective import PatchDiscriminator, adaptive_weight, generator_loss

    for batch in (64, 128, 256) if device.type == 'cuda' else (2,):
        torch.manual_seed(0)
        last = nn.Conv2d(8, 3, 3, padding=1).to(device)
        judge = PatchDiscriminator(base_channels=8, num_layers=1).to(device)
        x, images = torch.rand(batch, 8, 32, 32, device=device), torch.rand(batch, 3, 32, 32, device=device)
        weights = []
        for half in (False, True):
            with torch.autocast(device.type, torch.float16, enabled=half):
                reconstruction = last(x).float()
                losses = F.l1_loss(reconstruction, images) * 1e-6, generator_loss(judge, reconstruction) * 1e-6
                weights.append(float(adaptive_weight(*losses, last.weight)))
        error = abs(weights[1] / weights[0] - 1)
        report.at_most(f'relative difference, batch {batch}', error, ADAPTIVE_TOLERANCE)
        report.figure = f'{error:.2%} at batch {batch}'


def generation(device: torch.device, report: Report) -> None:
    """Check 10: generated tokens, device against CPU and one image against a batch; images a second."""
    from pretrain.generation.sampling import Sampling, image_generator
    from pretrain.generation.trajectory import trajectory

    big = device.type == 'cuda'
    model, steps, batch = make_addp(big), 8 if big else 3, 16 if big else 3

    def run(count: int, num_steps: int) -> Tensor:
        generators = [image_generator(0, i) for i in range(count)]
        *_, last = trajectory(model, count, Sampling(num_steps), generators)
        return last.tokens.cpu()

    wanted = run(1, steps)
    model.to(device)
    start = time.perf_counter()
    alone = run(1, steps)
    report.measured(f'generation, {steps} steps, first call, batch 1, fp32', time.perf_counter() - start, 's')
    together = run(batch, steps)
    report.at_least('tokens equal to the CPU', float((alone == wanted).float().mean()), GENERATED_EQUAL)
    report.at_least('tokens equal in a batch', float((together[:1] == alone).float().mean()), GENERATED_EQUAL)
    steps = 20 if big else steps
    for dtype in precisions(device):
        if dtype is torch.float16:
            continue
        with autocast(device, dtype):
            run(batch, 2)
            wait_for(device)
            ms = time_ms(lambda: run(batch, steps), device, repeats=2, warmup=0)
        report.measured(f'generation, {steps} steps, batch {batch}, {DTYPES[dtype]}', batch / ms * 1e3, 'images/s')
    shares = [value for name, value in report.values.items() if name.startswith('tokens equal')]
    report.figure = f'tokens equal {min(shares):.1%}; {report.lines[-1].rpartition(": ")[2]}'


def make_addp(big: bool, frozen_dtype: str | None = None) -> ADDP:
    """An ADDP with random weights in eval mode: the published ViT-B, or the smallest with every part in it."""
    arch = dict(width=32, depth=1, num_heads=2)
    small: dict[str, Any] = dict(
        arch=arch,
        decoder_depth=1,
        decoder_num_heads=4,
        img_size=32,
        patch_size=8,
        tokenizer=dict(
            base_channels=32, channel_multipliers=(1, 1, 1, 1), num_res_blocks=1, latent_channels=16, num_codes=64
        ),
        token_predictor=dict(arch=arch, decoder_depth=1, decoder_num_heads=4),
    )
    torch.manual_seed(0)
    model = ADDP(**({} if big else small), frozen_dtype=frozen_dtype).eval()
    nn.init.normal_(model.tokenizer.codebook, std=0.3)
    return model
