"""Which tokens are masked: the distribution of mask ratios, the draws from it and the masks (pure functions).

All randomness comes from a ``torch.Generator`` or from noise given by the caller. Masks are bool, True = to be
predicted. Shapes: B images, L tokens of an image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Both ADDP's timesteps and MAGE's mask ratios follow this truncated normal (MAGE, section 3.1).
RATIO_MEAN = 0.55
RATIO_STD = 0.25
RATIO_MIN = 0.5
NUM_TIMESTEPS = 100  # of the cosine schedule; training uses those with a ratio of at least RATIO_MIN
MAX_STRIDE = 5  # timesteps between m_t and m_{t+1}
DROPPED_RATIO = 0.5  # of all tokens, hidden from the token predictor's encoder (MAGE)


class MaskRatioDistribution(NamedTuple):
    """The categorical distribution of the training timesteps.

    Attributes:
        ratios: (T,) float64, ascending.
        probs: (T,) float64, summing to 1.
    """

    ratios: Tensor
    probs: Tensor


def mask_ratio_distribution() -> MaskRatioDistribution:
    """The 66 ratios cos(pi/2 * k / 100) in [0.5, 1), k = 66 .. 1, weighted by the truncated normal's density."""
    k = torch.arange(NUM_TIMESTEPS, 0, -1, dtype=torch.float64)
    ratios = torch.cos(math.pi / 2 * k / NUM_TIMESTEPS)
    ratios = ratios[ratios >= RATIO_MIN]
    density = torch.exp(-0.5 * ((ratios - RATIO_MEAN) / RATIO_STD).square())
    return MaskRatioDistribution(ratios, density / density.sum())


def draw_mask_ratios(
    distribution: MaskRatioDistribution, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """Draws a timestep and a noisier one, 1 to 5 timesteps on (or the last timestep).

    Args:
        distribution: As :func:`mask_ratio_distribution` returns it.
        generator: Source of randomness, on the CPU; torch's global one if None.

    Returns:
        (r_t, r_{t+1}), r_t <= r_{t+1}.
    """
    index = int(torch.multinomial(distribution.probs, 1, generator=generator))
    stride = int(torch.randint(1, MAX_STRIDE + 1, (1,), generator=generator))
    noisier = min(index + stride, len(distribution.ratios) - 1)
    return float(distribution.ratios[index]), float(distribution.ratios[noisier])


def num_masked(ratio: float, num_tokens: int) -> int:
    """Number of masked tokens at a ratio: ceil(num_tokens * ratio).

    Raises:
        ValueError: If the ratio is outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f'a mask ratio must lie in [0, 1], got {ratio}')
    return math.ceil(num_tokens * ratio)


def masks_from_noise(noise: Tensor, *counts: int) -> tuple[Tensor, ...]:
    """Masks, for each count, that many tokens of each row: those with the lowest noise.

    The masks of one noise are nested: a smaller count's mask lies within a larger count's.

    Args:
        noise: (B, L) float.
        *counts: Numbers of masked tokens, each in [0, L].

    Returns:
        One bool tensor (B, L) per count.

    Raises:
        ValueError: If a count is out of range.
    """
    L = noise.shape[1]
    if any(not 0 <= count <= L for count in counts):
        raise ValueError(f'cannot mask {counts} of {L} tokens: counts must lie in [0, {L}]')
    # Ranks, not a threshold on the noise: float32 noise has ties, and the counts are exact.
    ranks = noise.argsort(dim=1, stable=True).argsort(dim=1)
    return tuple(ranks < count for count in counts)


def masks_at_ratio(ratio: float, batch_size: int, num_tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """m_t of a given ratio and m_{t+1} of 0.05 more, for figures and probes; in training it is 1 to 5 timesteps on.

    Args:
        ratio: Share of masked tokens in m_t, in [0, 1].
        batch_size: B.
        num_tokens: L.
        generator: Source of randomness, on the CPU.

    Returns:
        Two bool tensors (B, L) on the CPU.
    """
    counts = num_masked(ratio, num_tokens), num_masked(min(1.0, ratio + 0.05), num_tokens)
    mask, noisier_mask = masks_from_noise(torch.rand(batch_size, num_tokens, generator=generator), *counts)
    return mask, noisier_mask


def count_true(mask: Tensor) -> int:
    """The number of True entries in each row of a mask (B, L), 0 if it has no rows.

    Waits for the device that the mask lies on: ask while it is still on the CPU.

    Raises:
        ValueError: If the rows have different numbers of True entries.
    """
    counts = mask.sum(1).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            'every row of a mask must have the same number of masked tokens, because the network reads sequences of '
            f'one length; got rows with {sorted(set(counts))} of {mask.shape[1]}'
        )
    return counts[0] if counts else 0


def true_indices(mask: Tensor, count: int | None = None) -> Tensor:
    """The indices of the True entries of each row, ascending.

    Args:
        mask: (B, L) bool.
        count: Number N of True entries of each row, if it is known: then nothing waits for the mask's device. It is not
            checked. None counts.

    Returns:
        (B, N) int64.

    Raises:
        ValueError: If the rows have different numbers of True entries (only without ``count``).
    """
    count = count_true(mask) if count is None else count
    return mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]


def draw_masks(batch_size: int, num_tokens: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draws the two masks of an ADDP training step: one pair of ratios for the batch, independent noise per sample.

    Args:
        batch_size: B.
        num_tokens: L.
        generator: Source of randomness, on the CPU; torch's global one if None.

    Returns:
        (mask, noisier_mask): m_t and m_{t+1}, bool (B, L) on the CPU, m_t within m_{t+1}.
    """
    ratios = draw_mask_ratios(mask_ratio_distribution(), generator)
    noise = torch.rand(batch_size, num_tokens, generator=generator)
    mask, noisier_mask = masks_from_noise(noise, *(num_masked(ratio, num_tokens) for ratio in ratios))
    return mask, noisier_mask


def draw_predictor_masks(
    batch_size: int, num_tokens: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draws the masks of a token predictor's training step (MAGE's objective).

    The mask ratio is one truncated normal draw on [0.5, 1] for the batch. Half of all tokens, all of them masked ones,
    are left out of the encoder's sequence altogether.

    Args:
        batch_size: B.
        num_tokens: L.
        generator: Source of randomness, on the CPU; torch's global one if None.

    Returns:
        (mask, dropped), bool (B, L) on the CPU, ``dropped`` within ``mask``.
    """
    ratio = _draw_truncated_normal(generator)
    noise = torch.rand(batch_size, num_tokens, generator=generator)
    masked = num_masked(ratio, num_tokens)
    mask, dropped = masks_from_noise(noise, masked, min(num_masked(DROPPED_RATIO, num_tokens), masked))
    return mask, dropped


def _draw_truncated_normal(generator: torch.Generator | None) -> float:
    """One draw from N(0.55, 0.25) truncated to [0.5, 1], by inverting its distribution function."""
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    bounds = torch.tensor([RATIO_MIN, 1.0], dtype=torch.float64)
    low, high = torch.special.ndtr((bounds - RATIO_MEAN) / RATIO_STD)
    ratio = RATIO_MEAN + RATIO_STD * torch.special.ndtri(low + uniform * (high - low))
    return float(ratio.clamp(RATIO_MIN, 1.0))
