"""Check 17: torch.compile of blocks with positions and of ADDP's frozen half: one graph, the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tools.gpu.measuring import largest_error, relative_error, time_ms
from tools.gpu.networks import LEAST_NOISE, NOISE_FACTOR, make_addp
from tools.gpu.report import Report

TOLERANCE = 1e-5  # of float32, where sums are in another order


def compiled(device: torch.device, report: Report) -> None:
    """Check 17: on a CPU traced only, as code needs a compiler; that it is one graph is seen all the same."""
    backend = 'inductor' if device.type == 'cuda' else 'eager'
    _blocks(device, report, backend)
    _diffuse(device, report, backend)
    report.figure = f'blocks {report.values["blocks, compiled"]:.1e}, noisy images {report.values["noisy images"]:.1e}'


def _blocks(device: torch.device, report: Report, backend: str) -> None:
    """A windowed and a global block: forward and backward in one graph."""
    from addp_backbone.layers.block import Block

    torch.manual_seed(0)
    big = device.type == 'cuda'
    width, heads, side, window = (768, 12, 32, 14) if big else (48, 3, 8, 3)
    blocks = nn.ModuleList([Block(width, heads, window_size=w, rel_pos_size=w or side) for w in (window, 0)]).to(device)
    for name, parameter in blocks.named_parameters():
        if 'rel_pos' in name:
            nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, side * side, width, device=device)

    def forward(x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x, (side, side))
        return x

    first, second = (_run(forward, x, blocks) for _ in range(2))
    fast = torch.compile(forward, backend=backend, fullgraph=True)
    noise = largest_error(second, first)
    error = largest_error(_run(fast, x, blocks), first)
    report.note('noise of two equal runs', noise)
    report.at_most('blocks, compiled', error, max(TOLERANCE, NOISE_FACTOR * noise + LEAST_NOISE))
    if big:
        for name, function in dict(eager=forward, compiled=fast).items():
            report.measured(f'two blocks of ViT-B, 512 px, {name}', time_ms(partial(function, x), device), 'ms')


def _run(function: Callable[[Tensor], Tensor], x: Tensor, blocks: nn.Module) -> list[Tensor]:
    """Output and gradients."""
    blocks.zero_grad(set_to_none=True)
    out = function(x)
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in blocks.parameters() if p.grad is not None)]


def _diffuse(device: torch.device, report: Report, backend: str) -> None:
    """ADDP's frozen networks in one graph."""
    model = make_addp(device.type == 'cuda').to(device)
    images = torch.rand(2, 3, model.img_size, model.img_size, device=device)
    ranks = torch.rand(2, model.num_tokens, device=device).argsort(1).argsort(1)
    masks = ranks < model.num_tokens // 2, ranks < 3 * model.num_tokens // 4
    wanted = model.diffuse(images, *masks)
    got = torch.compile(model.diffuse, backend=backend, fullgraph=True)(images, *masks)
    report.at_least('tokens equal', float((got.tokens == wanted.tokens).float().mean()), 0.99)
    report.at_most('noisy images', relative_error(got.noisy_images, wanted.noisy_images), 1e-2)
