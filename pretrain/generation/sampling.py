"""Draws: how much noise and how many masked places a step has, an image's own source of randomness, tokens from logits.

Codes are drawn by the Gumbel-max trick: rounding all but never turns over which of two sums is larger, whereas it often
decides on which side of a cumulative probability a number falls.

Shapes: B images, L places, K codes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEDULES = ('cosine', 'linear')
Generators = torch.Generator | Sequence[torch.Generator] | None

_CEIL_SLACK = 1e-9  # so that ceil() does not round up what is whole but for float64's rounding (cos(pi / 3) * 256)
_SEED_SPACE = 2**32  # torch's generator on the CPU reads the lower 32 bits of a seed and no more
_SEED_STEP = (
    0x9E3779B1  # odd, hence one-to-one modulo 2**32; near 2**32 / golden ratio, so that neighbours lie far apart
)


@dataclass(frozen=True)
class Sampling:
    """How to draw (section 1 of the method; 20 cosine steps by default, the paper's other setting is 256 linear ones).

    Attributes:
        steps: Number of steps T, at least 1.
        schedule: 'cosine' or 'linear': how the share of masked places falls.
        temperature: Weight of the noise in the choice of the next masked places; 0 masks the least likely tokens.
        dynamic: Whether the temperature falls linearly to 0 at the last step; otherwise it is constant.
        top_p: Draw from the smallest set of codes that holds this much probability, in (0, 1]; None for all codes.
    """

    steps: int = 20
    schedule: str = 'cosine'
    temperature: float = 6.0
    dynamic: bool = True
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f'steps must be at least 1, got {self.steps}')
        if self.schedule not in SCHEDULES:
            raise ValueError(f'schedule must be one of {SCHEDULES}, got {self.schedule!r}')
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f'temperature must be 0 or more, got {self.temperature}')
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f'top_p must lie in (0, 1], got {self.top_p}; leave it out to draw from all codes')

    def num_masked(self, step: int, num_initial: int) -> int:
        """Number of places that are masked after a step (0-based) of an image that began with ``num_initial``; never under 1."""
        if self.schedule == 'linear':
            length = -(-num_initial * (self.steps - step - 1) // self.steps)  # ceil, in whole numbers
        else:
            length = math.ceil(num_initial * math.cos(math.pi / 2 * (step + 1) / self.steps) - _CEIL_SLACK)
        return min(max(length, 1), num_initial)

    def temperature_at(self, step: int) -> float:
        """The temperature of a step (0-based)."""
        return self.temperature * (1 - (step + 1) / self.steps) if self.dynamic else self.temperature


def image_generator(seed: int, index: int) -> torch.Generator:
    """The source of randomness, on the CPU, of image ``index`` of a run; images of one run never share one (up to 2**32)."""
    start = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], 'big')
    return torch.Generator().manual_seed((start + index * _SEED_STEP) % _SEED_SPACE)


def sample_tokens(logits: Tensor, gumbel: Tensor, top_p: float | None = None) -> Tensor:
    """Draws a code at every place: the largest sum of logit and Gumbel noise.

    Args:
        logits: (B, L, K) float32.
        gumbel: (B, L, K), standard Gumbel noise.
        top_p: Draw from the smallest set of codes whose probabilities sum to at least this; None for all.

    Returns:
        (B, L) int64.
    """
    if top_p is not None and top_p < 1:
        sorted_logits, codes = logits.sort(dim=-1, descending=True, stable=True)
        probs = sorted_logits.softmax(-1)
        beyond = probs.cumsum(-1) - probs >= top_p  # the codes before this one hold enough; never True at the first
        logits = torch.full_like(logits, -math.inf).scatter(-1, codes, sorted_logits.masked_fill(beyond, -math.inf))
    return (logits + gumbel).argmax(-1)


def to_gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform noise in [0, 1); finite, as a temperature of 0 times infinity is not a number."""
    return -(-uniform.clamp_min(torch.finfo(uniform.dtype).tiny).log()).log()


def draw_uniform(generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """Uniform noise (B, *shape) float32, each image's from its own generator."""
    draws = [torch.rand(*shape, generator=generator, device=generator.device) for generator in generators]
    return torch.stack([draw.to(device) for draw in draws])


def split_generator(generator: Generators, num_images: int) -> Sequence[torch.Generator]:
    """One source of randomness for each image, from one for the run, torch's global one (None), or those given.

    Raises:
        ValueError: If the numbers do not fit.
    """
    if num_images < 1:
        raise ValueError(f'num_images must be at least 1, got {num_images}')
    if isinstance(generator, Sequence):
        if len(generator) != num_images:
            raise ValueError(
                f'got {len(generator)} generators for {num_images} images, wanted one for each, or a single one'
            )
        return generator
    device = 'cpu' if generator is None else generator.device
    seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
    return [image_generator(seed, index) for index in range(num_images)]
