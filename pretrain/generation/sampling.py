"""Sampling: noise and number of masked tokens of each step, an image's own random generator, tokens from logits.

Codes are drawn by the Gumbel-max trick, because it is robust to rounding: rounding almost never changes which of two
sums is larger, but often on which side of a cumulative probability a number lies.

Shapes: B images, L tokens, K codes.
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

_CEIL_SLACK = 1e-9  # keeps ceil() from rounding up integers that float64 misses, such as cos(pi / 3) * 256
_SEED_SPACE = 2**32  # torch's CPU generator reads only the lower 32 bits of a seed
# Odd, hence one-to-one modulo 2**32; near 2**32 / golden ratio, so that neighbours lie far apart.
_SEED_STEP = 0x9E3779B1


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled. The default is 20 cosine steps; the paper's other setting is 256 linear ones.

    Attributes:
        steps: Number of steps T, at least 1.
        schedule: 'cosine' or 'linear': how the share of masked tokens falls.
        temperature: Weight of the noise in the choice of the tokens to mask next; 0 masks the least likely ones.
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
        """Number of tokens that are masked after a step (from 0), at least 1; ``num_initial`` were masked at first."""
        if self.schedule == 'linear':
            length = -(-num_initial * (self.steps - step - 1) // self.steps)  # ceil, in whole numbers
        else:
            length = math.ceil(num_initial * math.cos(math.pi / 2 * (step + 1) / self.steps) - _CEIL_SLACK)
        return min(max(length, 1), num_initial)

    def temperature_at(self, step: int) -> float:
        """The temperature of a step (from 0)."""
        return self.temperature * (1 - (step + 1) / self.steps) if self.dynamic else self.temperature


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random generator, on the CPU, of image ``index`` of a run; they differ for up to 2**32 images."""
    start = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], 'big')
    return torch.Generator().manual_seed((start + index * _SEED_STEP) % _SEED_SPACE)


def sample_tokens(logits: Tensor, gumbel: Tensor, top_p: float | None = None) -> Tensor:
    """Draws a code for every token: the one with the largest sum of logit and Gumbel noise.

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
    """Standard Gumbel noise from uniform noise in [0, 1); always finite, so that a temperature of 0 gives no NaN."""
    return -(-uniform.clamp_min(torch.finfo(uniform.dtype).tiny).log()).log()


def split_generator(generator: Generators, num_images: int) -> Sequence[torch.Generator]:
    """One generator for each image: those given, or seeded by one for the run or by torch's global one (None).

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
