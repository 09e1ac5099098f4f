"""Which tokens are masked: the distribution of mask ratios, the draws from it and the masks (pure functions).

All randomness comes from a ``torch.Generator`` or from noise given by the caller. Masks are bool, True = to be
predicted.
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


class MaskRatioDistribution(NamedTuple):
    """The categorical distribution of the training timesteps.

    Attributes:
        ratios: (T,) float64, ascending.
        probs: (T,) float64, summing to 1.
    """

    ratios: Tensor
    probs: Tensor


def mask_ratio_distribution(num_timesteps: int = 100) -> MaskRatioDistribution:
    """The ratios cos(pi/2 * k / num_timesteps) in [0.5, 1), weighted by the truncated normal's density.

    With the method's 100 timesteps these are 66 ratios (k = 66 .. 1).
    """
    k = torch.arange(num_timesteps, 0, -1, dtype=torch.float64)
    ratios = torch.cos(math.pi / 2 * k / num_timesteps)
    ratios = ratios[ratios >= RATIO_MIN]
    density = torch.exp(-0.5 * ((ratios - RATIO_MEAN) / RATIO_STD).square())
    return MaskRatioDistribution(ratios, density / density.sum())


def draw_mask_ratios(
    distribution: MaskRatioDistribution, generator: torch.Generator | None = None, max_stride: int = 5
) -> tuple[float, float]:
    """Draws a timestep and a noisier one.

    Args:
        distribution: As :func:`mask_ratio_distribution` returns it.
        generator: Source of randomness, on the CPU; torch's global one if None.
        max_stride: The noisier timestep lies 1 .. ``max_stride`` steps on, or at the last one.

    Returns:
        (r_t, r_{t+1}), r_t <= r_{t+1}.
    """
    index = int(torch.multinomial(distribution.probs, 1, generator=generator))
    stride = int(torch.randint(1, max_stride + 1, (1,), generator=generator))
    noisier = min(index + stride, len(distribution.ratios) - 1)
    return float(distribution.ratios[index]), float(distribution.ratios[noisier])


def num_masked(ratio: float, num_tokens: int) -> int:
    """Number of masked tokens at a ratio: ceil(num_tokens * ratio).

    Raises:
        ValueError: If the ratio is outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f'a mask ratio lies in [0, 1], got {ratio}')
    return math.ceil(num_tokens * ratio)


def masks_from_noise(noise: Tensor, *counts: int) -> tuple[Tensor, ...]:
    """Masks, for each count, that many places of each row: those with the lowest noise.

    The masks of one noise are nested: a smaller count's mask lies within a larger count's.

    Args:
        noise: (B, L) float.
        *counts: Numbers of masked places, each in [0, L].

    Returns:
        One bool tensor (B, L) per count.

    Raises:
        ValueError: If a count is out of range.
    """
    L = noise.shape[1]
    if any(not 0 <= count <= L for count in counts):
        raise ValueError(f'cannot mask {counts} of {L} tokens: counts lie in [0, {L}]')
    # Ranks, not a threshold on the noise: float32 noise has ties, and the counts are exact.
    ranks = noise.argsort(dim=1, stable=True).argsort(dim=1)
    return tuple(ranks < count for count in counts)


def masks_at_ratio(ratio: float, batch_size: int, num_tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """m_t of a given ratio and an m_{t+1} of 0.05 more, for pictures and probes; in training it is 1 to 5 timesteps on.

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


def true_places(mask: Tensor) -> Tensor:
    """The indices of the True places of each row, ascending.

    Args:
        mask: (B, L) bool.

    Returns:
        (B, N) int64, N being each row's number of True places.

    Raises:
        ValueError: If the rows have different numbers of True places.
    """
    counts = mask.sum(1).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            f'every row of a mask must have the same number of masked places, as the network reads rows of '
            f'one length; got rows with {sorted(set(counts))} of {mask.shape[1]}'
        )
    return mask.nonzero()[:, 1].reshape(mask.shape[0], counts[0] if counts else 0)


def draw_masks(
    batch_size: int,
    num_tokens: int,
    generator: torch.Generator | None = None,
    distribution: MaskRatioDistribution | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws the two masks of an ADDP training step: one pair of ratios for the batch, own noise for each sample.

    Args:
        batch_size: B.
        num_tokens: L.
        generator: Source of randomness, on the CPU; torch's global one if None.
        distribution: Of the ratios; the method's if None.

    Returns:
        (mask, noisier_mask): m_t and m_{t+1}, bool (B, L) on the CPU, m_t within m_{t+1}.
    """
    ratios = draw_mask_ratios(distribution or mask_ratio_distribution(), generator)
    noise = torch.rand(batch_size, num_tokens, generator=generator)
    mask, noisier_mask = masks_from_noise(noise, *(num_masked(ratio, num_tokens) for ratio in ratios))
    return mask, noisier_mask


def draw_predictor_masks(
    batch_size: int, num_tokens: int, generator: torch.Generator | None = None, drop_ratio: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Draws the masks of a token predictor's training step (MAGE's objective).

    The mask ratio is one truncated normal draw on [0.5, 1] for the batch; half of the tokens, all among the masked
    ones, are not even shown to the encoder as masked.

    Args:
        batch_size: B.
        num_tokens: L.
        generator: Source of randomness, on the CPU; torch's global one if None.
        drop_ratio: Share of the tokens dropped from the encoder, at most 0.5.

    Returns:
        (mask, dropped), bool (B, L) on the CPU, ``dropped`` within ``mask``.
    """
    if not 0 <= drop_ratio <= RATIO_MIN:
        raise ValueError(
            f'drop_ratio must lie in [0, {RATIO_MIN}], as only masked tokens are dropped and at least '
            f'{RATIO_MIN} of them are masked; got {drop_ratio}'
        )
    ratio = _draw_truncated_normal(generator)
    noise = torch.rand(batch_size, num_tokens, generator=generator)
    masked = num_masked(ratio, num_tokens)
    mask, dropped = masks_from_noise(noise, masked, min(num_masked(drop_ratio, num_tokens), masked))
    return mask, dropped


def _draw_truncated_normal(generator: torch.Generator | None) -> float:
    """One draw from N(0.55, 0.25) truncated to [0.5, 1], by inverting its distribution function."""
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    bounds = torch.tensor([RATIO_MIN, 1.0], dtype=torch.float64)
    low, high = torch.special.ndtr((bounds - RATIO_MEAN) / RATIO_STD)
    ratio = RATIO_MEAN + RATIO_STD * torch.special.ndtri(low + uniform * (high - low))
    return float(ratio.clamp(RATIO_MIN, 1.0))
