"""Generation and editing: the right half of ADDP's training step in a loop, from masked tokens to images.

A step, in this file's order: logits of the images so far -> sampled tokens -> the next mask -> mixed latents -> images.
Needs the trained network and the tokenizer, never the token predictor. Every draw of an image comes from that image's
own ``torch.Generator``, so an image does not depend on which others share its batch.

Shapes: B images, L = g * g tokens, K codes, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretrain.generation.noise import noise_of_steps
from pretrain.generation.sampling import Generators, Sampling, sample_tokens, split_generator
from pretrain.networks.addp import ADDP
from pretrain.networks.frozen import evaluating, frozen_forward
from pretrain.networks.tokenizer import VQGANTokenizer

_MAX_OVERSHOOT = 0.5  # of pixels given beyond [0, 1]: bicubic resizing leaves some, other scales far more


class GenerationStep(NamedTuple):
    """The state of generation after a step.

    Attributes:
        images: (B, 3, H, W) float32, about [0, 1], not clamped.
        tokens: (B, L) int64; masked ones are provisional.
        mask: (B, L) bool, the tokens to be sampled again in the next step; ``images`` show their expected code vectors.
    """

    images: Tensor
    tokens: Tensor
    mask: Tensor


def generate(
    model: ADDP,
    num_images: int,
    steps: int = 20,
    schedule: str = 'cosine',
    temperature: float = 6.0,
    generator: Generators = None,
    images: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dynamic: bool = True,
    top_p: float | None = None,
) -> Tensor:
    """Generates images, or parts of given images, as one batch.

    Args:
        model: ADDP with its tokenizer; the token predictor is not used. Runs in eval mode, under the surrounding
            autocast.
        num_images: Number N of images.
        steps: Number of steps, at least 1.
        schedule: 'cosine' or 'linear': how the share of masked tokens falls.
        temperature: Weight of the noise in the choice of the tokens to mask next, at the first step.
        generator: One for the run (image i then depends on its state and on i only), or one for each image; on any
            device, with the same draws on every device of the model. None: torch's global generator.
        images: Images to edit, (N, 3, H, W) or (1, 3, H, W) in [0, 1]; None generates whole images.
        mask: Tokens to sample anew, (N, L) or (L,) bool, equally many in each row; only with ``images``. The others
            keep their values. What is under the mask has no influence, except through the tokenizer's receptive field.
        dynamic: Whether the temperature falls linearly to 0 at the last step.
        top_p: Nucleus sampling from the smallest set of codes with this probability, in (0, 1]; None for all codes.

    Returns:
        (N, 3, H, W) float32 in [0, 1]. With an all-False mask, the tokenizer's reconstruction of ``images``.

    Raises:
        ValueError: If an option is out of range, or shapes do not fit.
    """
    sampling = Sampling(steps, schedule, temperature, dynamic, top_p)
    *_, last = trajectory(model, num_images, sampling, generator, images, mask)
    return last.images.clamp(0, 1)


def trajectory(
    model: ADDP,
    num_images: int,
    sampling: Sampling,
    generator: Generators = None,
    images: Tensor | None = None,
    mask: Tensor | None = None,
) -> Iterator[GenerationStep]:
    """Yields the state after each step; arguments as in :func:`generate`, which clamps and returns the last images."""
    device = model.pixel_mean.device
    generators = split_generator(generator, num_images)
    if images is None:
        if mask is not None:
            raise ValueError('mask is given without images: a mask says which tokens of images are drawn anew')
        state = _blank(model, num_images, device)
    else:
        state = _to_edit(model, num_images, images.to(device), mask)
    num_initial = int(state.mask[0].sum()) if num_images else 0
    if num_initial == 0:
        yield state
        return
    num_masked = num_initial
    noises = noise_of_steps(generators, model.num_tokens, model.num_codes, sampling.steps, device)
    for step, noise in enumerate(noises):
        with torch.no_grad(), evaluating(model), _kernels_without_plans(device):
            logits = model.predict_logits(state.images, state.tokens, state.mask, num_masked).float()  # (B, L, K)
            tokens = sample_tokens(logits, noise.of_codes, sampling.top_p)
            num_next = sampling.num_masked(step, num_initial)
            temperature = sampling.temperature_at(step)
            state = advance(model, state, logits, tokens, noise.of_tokens, num_next, temperature, num_masked)
            num_masked = num_next
        yield state


@contextmanager
def _kernels_without_plans(device: torch.device) -> Iterator[None]:
    """On CUDA, attention without cuDNN, which plans anew, for seconds, at each of the decoder's lengths."""
    if device.type != 'cuda':
        yield
        return
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True):
        yield


def advance(
    model: ADDP,
    state: GenerationStep,
    logits: Tensor,
    sampled: Tensor,
    gumbel: Tensor,
    num_masked: int,
    temperature: float,
    num_open: int | None = None,
) -> GenerationStep:
    """The deterministic part of a step, after the draws.

    Args:
        model: ADDP with its tokenizer.
        state: The state before the step.
        logits: (B, L, K) float32, from ``state``.
        sampled: (B, L) int64, drawn from the logits; only masked ones are read.
        gumbel: (B, L), standard Gumbel noise.
        num_masked: Number of tokens to mask next.
        temperature: Weight of the noise.
        num_open: Number of masked tokens of each row before the step, if it is known; see :func:`next_mask`.

    Returns:
        The state after the step.
    """
    tokens = torch.where(state.mask, sampled, state.tokens)
    probs = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]  # (B, L)
    mask = next_mask(probs, ~state.mask, num_masked, temperature, gumbel, num_open)
    with frozen_forward(logits.device.type, model.frozen_dtype):
        images = model.tokenizer.decode(mix_latents(model.tokenizer, logits, tokens, mask))
    return GenerationStep(images, tokens, mask)


def next_mask(
    sampled_probs: Tensor,
    known: Tensor,
    num_masked: int,
    temperature: float,
    gumbel: Tensor,
    num_open: int | None = None,
) -> Tensor:
    """Masks the tokens of lowest confidence: log of the sampled code's probability + temperature * Gumbel noise.

    Args:
        sampled_probs: (B, L), probabilities of the codes that were drawn.
        known: (B, L) bool, tokens that are settled and never masked.
        num_masked: Number of tokens to mask in each row.
        temperature: Weight of the noise.
        gumbel: (B, L), standard Gumbel noise.
        num_open: Number of tokens of each row that are not known; None counts, and waits for the device.

    Returns:
        (B, L) bool with ``num_masked`` True entries in each row.

    Raises:
        ValueError: If a row has fewer tokens that are not known.
    """
    available = num_open
    if available is None:
        available = int((~known).sum(1).min()) if len(known) else num_masked
    if not 0 <= num_masked <= available:
        raise ValueError(f'cannot mask {num_masked} tokens of each row: a row has only {available} that are not known')
    confidence = sampled_probs.float().log() + temperature * gumbel
    confidence = confidence.masked_fill(known, math.inf)
    # Ranks, not a threshold: the number is exact when confidences tie.
    return confidence.argsort(dim=1, stable=True).argsort(dim=1) < num_masked


def mix_latents(tokenizer: VQGANTokenizer, logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The latents to decode: expected code vectors of masked tokens, code vectors of the others.

    Args:
        tokenizer: The tokenizer with the codebook.
        logits: (B, L, K); the expectation is under their full softmax.
        tokens: (B, L) int64.
        mask: (B, L) bool.

    Returns:
        (B, C, g, g) float32.

    Raises:
        ValueError: If L is not a square number.
    """
    side = math.isqrt(mask.shape[1])
    if side * side != mask.shape[1]:
        raise ValueError(f'tokens must form a square grid, got {mask.shape[1]} tokens')
    grid = side, side
    soft = tokenizer.soft_latents(logits.float().softmax(-1), grid)
    return torch.where(mask.unflatten(1, grid)[:, None], soft, tokenizer.lookup(tokens, grid))


def _blank(model: ADDP, num_images: int, device: torch.device) -> GenerationStep:
    """The state in which everything is masked: the decoder sees neither pixels nor tokens."""
    tokens = torch.zeros(num_images, model.num_tokens, dtype=torch.int64, device=device)
    images = torch.zeros(num_images, 3, model.img_size, model.img_size, device=device)
    return GenerationStep(images, tokens, torch.ones_like(tokens, dtype=torch.bool))


def _to_edit(model: ADDP, num_images: int, images: Tensor, mask: Tensor | None) -> GenerationStep:
    """The state of given images with the average code under the mask, so that what was there cannot leak."""
    size = 3, model.img_size, model.img_size
    if (
        images.ndim != 4
        or images.shape[1:] != size
        or len(images) not in (1, num_images)
        or not images.is_floating_point()
    ):
        raise ValueError(
            f'images must be floats in [0, 1] of shape {(num_images, *size)} or {(1, *size)}, '
            f'got {images.dtype} {tuple(images.shape)}'
        )
    low, high = (float(value) for value in images.aminmax())
    if not (low >= -_MAX_OVERSHOOT and high <= 1 + _MAX_OVERSHOOT):  # nor if they are nan
        raise ValueError(
            f'images must lie in [0, 1], got values from {low:g} to {high:g}: divide 8-bit pixels by 255, undo a '
            'normalisation'
        )
    if mask is None:
        raise ValueError('images are given without a mask: say which tokens to draw anew (True), or leave images out')
    if mask.dtype != torch.bool or mask.shape not in ((model.num_tokens,), (num_images, model.num_tokens)):
        raise ValueError(
            f'mask must be bool of shape {(num_images, model.num_tokens)} or {(model.num_tokens,)}, '
            f'got {mask.dtype} {tuple(mask.shape)}'
        )
    mask = mask.to(images.device).expand(num_images, -1)
    counts = mask.sum(1)
    if (counts != counts[0]).any():
        raise ValueError(
            f'each row of the mask must have equally many True entries, got {sorted(set(counts.tolist()))}; '
            'edit images with different numbers one by one'
        )
    with torch.no_grad(), frozen_forward(images.device.type, model.frozen_dtype), evaluating(model):
        tokens = model.tokenizer.encode(images).tokens.expand(num_images, -1)
        uniform = torch.zeros(*tokens.shape, model.num_codes, device=images.device)
        return GenerationStep(model.tokenizer.decode(mix_latents(model.tokenizer, uniform, tokens, mask)), tokens, mask)
