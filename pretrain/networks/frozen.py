"""Frozen networks inside a trained model: no gradients, out of its checkpoints, in a precision of their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pretrain.networks.tokenizer import VQGANTokenizer

AUTO = 'auto'
MIN_EQUAL_TOKENS = 0.98  # of the tokens in float32, for a precision to serve; our assumption
HALF_PRECISIONS = (torch.float16, torch.bfloat16)  # float16 first: it rounds less
PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
_TORCH_NAMES = {'float32': 'fp32', 'bfloat16': 'bf16', 'float16': 'fp16'}  # of configs written for earlier versions


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Turns a config's ``'fp32'``, ``'bf16'`` or ``'fp16'`` into the torch dtype; passes dtypes and None.

    torch's own names (``'float32'``) are understood too, as earlier configs have them.

    Raises:
        ValueError: If it is none of the three.
    """
    if dtype is None or dtype in PRECISIONS.values():
        return dtype  # type: ignore[return-value]
    dtype = _TORCH_NAMES.get(str(dtype), dtype)
    if dtype not in PRECISIONS:
        raise ValueError(f'unknown precision {dtype!r}: use one of {sorted(PRECISIONS)} or None')
    return PRECISIONS[str(dtype)]


class Choice(NamedTuple):
    """The precision chosen for frozen networks.

    Attributes:
        dtype: The precision.
        shares: Of each precision that was tried, in turn, the share of tokens equal to float32's, in [0, 1].
    """

    dtype: torch.dtype
    shares: dict[torch.dtype, float]


@torch.no_grad()
def choose_precision(tokenizer: VQGANTokenizer, images: Tensor) -> Choice:
    """Finds the first 16-bit precision in which the tokenizer gives nearly the tokens that it gives in float32.

    Args:
        tokenizer: With float32 weights; stays as it is.
        images: (B, 3, H, W) in [0, 1], such as the first batch of a training.

    Returns:
        float16 or bfloat16 if at least :data:`MIN_EQUAL_TOKENS` of the tokens are the same and the reconstruction is
        finite, else float32.
    """
    shares: dict[torch.dtype, float] = {}
    with torch.autocast(images.device.type, enabled=False):
        wanted = tokenizer.encode(images).tokens
        for dtype in HALF_PRECISIONS:
            half = copy.deepcopy(tokenizer)
            half.set_precision(dtype)
            tokens, latents = half.encode(images)
            shares[dtype] = float((tokens == wanted).float().mean())
            if shares[dtype] >= MIN_EQUAL_TOKENS and bool(torch.isfinite(half.decode(latents)).all()):
                return Choice(dtype, shares)
    return Choice(torch.float32, shares)


@contextmanager
def frozen_forward(device_type: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Runs frozen networks: without gradients and, if they have a precision of their own, outside of autocast.

    Args:
        device_type: Device type of the inputs, for example ``'cuda'``.
        dtype: The frozen networks' own precision; None to follow the surrounding autocast.
    """
    with torch.no_grad():
        if dtype is None:
            yield
        else:
            with torch.autocast(device_type, enabled=False):
                yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode (no dropout) and back into its former mode at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Freezes children of a model and keeps them out of its state dict.

    ``model.state_dict()`` then leaves them out, and ``model.load_state_dict()`` accepts state dicts without them (they
    keep their weights) as well as with them. Works with mmengine's own state dict functions and inside wrappers too.

    Args:
        model: The trained model.
        names: Names of its frozen children.
    """
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    prefixes = tuple(f'{name}.' for name in names)

    def leave_out(module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, metadata: object) -> None:
        for key in [key for key in state_dict if key.startswith(tuple(prefix + p for p in prefixes))]:
            del state_dict[key]

    def fill_in(module: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str, *_: object) -> None:
        for name in names:
            if any(key.startswith(f'{prefix}{name}.') for key in state_dict):
                continue  # the network is in the file: strict loading checks that it is complete
            for key, value in module.get_submodule(name).state_dict().items():
                state_dict[f'{prefix}{name}.{key}'] = value

    model.register_state_dict_post_hook(leave_out)
    model.register_load_state_dict_pre_hook(fill_in)
