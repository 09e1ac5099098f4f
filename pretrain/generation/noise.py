"""The noise of generation, drawn ahead: the CPU draws the next step's while the device computes this one's.

Noise comes from the CPU, so that images are the same on every device, and drawing it takes about as long as a step on a
GPU. Shapes: B images, L tokens, K codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.generation.sampling import to_gumbel


class StepNoise(NamedTuple):
    """Standard Gumbel noise of a step.

    Attributes:
        of_codes: (B, L, K) float32, for the codes.
        of_tokens: (B, L) float32, for the choice of the tokens to mask next.
    """

    of_codes: Tensor
    of_tokens: Tensor


def noise_of_steps(
    generators: Sequence[torch.Generator],
    num_tokens: int,
    num_codes: int,
    steps: int,
    device: torch.device,
    ahead: bool | None = None,
) -> Iterator[StepNoise]:
    """Draws the noise of each step, always the same from the same generators.

    Args:
        generators: One for each image, on any device.
        num_tokens: L.
        num_codes: K.
        steps: Number of steps.
        device: Where the noise is wanted.
        ahead: Whether a thread draws a step's noise while the step before is computed; if the consumer stops early, the
            generators are one step further then. None: on CUDA, where the CPU has nothing else to do.

    Yields:
        The noise, on ``device``.
    """
    shapes = (num_tokens, num_codes), (num_tokens,)
    on_host = all(generator.device.type == 'cpu' for generator in generators)
    if not on_host or not (device.type == 'cuda' if ahead is None else ahead):
        for _ in range(steps):
            yield StepNoise(*(_send(_draw(generators, shape, device), device) for shape in shapes))
        return
    with ThreadPoolExecutor(1, thread_name_prefix='noise') as thread:
        drawn = thread.submit(_draw_all, generators, shapes, device)
        for step in range(steps):
            uniform = drawn.result()
            if step + 1 < steps:
                drawn = thread.submit(_draw_all, generators, shapes, device)
            yield StepNoise(*(_send(values, device) for values in uniform))


def _draw_all(
    generators: Sequence[torch.Generator], shapes: Sequence[tuple[int, ...]], device: torch.device
) -> list[Tensor]:
    return [_draw(generators, shape, device) for shape in shapes]


def _draw(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform noise (B, *shape) where it is drawn, in pinned memory if it has to go to a GPU."""
    draws = [torch.rand(*shape, generator=generator, device=generator.device) for generator in generators]
    if len({draw.device for draw in draws}) > 1:
        draws = [draw.to(device) for draw in draws]
    stacked = torch.stack(draws)
    return stacked.pin_memory() if device.type == 'cuda' and stacked.device.type == 'cpu' else stacked


def _send(uniform: Tensor, device: torch.device) -> Tensor:
    return to_gumbel(uniform.to(device, non_blocking=True))
