"""Whether "float32" on CUDA means float32: TensorFloat-32 rounds the factors of products to 10 bits of mantissa.

torch uses it in convolutions, but not in matrix products, unless told otherwise. Where float32 is promised (evaluation
unless ``--precision`` says otherwise, ``tools/generate.py --precision fp32``, comparisons) it is off in both; a config
of a training chooses with ``env_cfg.tf32``. The flags mean nothing on other devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from addp_backbone.runtime.config_checks import LaunchError

HALF = {'bf16': torch.bfloat16, 'fp16': torch.float16}
EVALUATION_PRECISIONS = ('fp32', 'tf32', *HALF)
BACKBONE = 'backbone'


def use_tf32(allowed: bool) -> None:
    """Allows TF32 in convolutions and matrix products of this process, or forbids it in both."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


@contextmanager
def exact_float32() -> Iterator[None]:
    """Computes within without TF32; the flags from before come back."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    use_tf32(False)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def evaluation_precision(name: str, model: nn.Module) -> Iterator[None]:
    """Computes within in the precision that ``tools/test.py --precision`` names; the flags from before come back.

    Args:
        name: One of :data:`EVALUATION_PRECISIONS`: 'fp32' is float32 everywhere; 'tf32' lets CUDA round the factors of
            products and convolutions; 'bf16' and 'fp16' autocast the backbone, and tf32 is for the rest: boxes decoded
            in 16 bits would be off by pixels.
        model: With a module named ``backbone``, on its device.

    Raises:
        ValueError: If there is no such precision, or no backbone for it.
    """
    if name not in EVALUATION_PRECISIONS:
        raise ValueError(f'precision is {name!r}, wanted one of {", ".join(EVALUATION_PRECISIONS)}')
    with exact_float32(), nullcontext() if name in ('fp32', 'tf32') else _half_backbone(model, HALF[name]):
        use_tf32(name != 'fp32')
        yield


@contextmanager
def _half_backbone(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Runs ``backbone`` of a model under autocast; its features come out in float32."""
    backbones = [part for name, part in model.named_modules() if name.rpartition('.')[2] == BACKBONE]
    if not backbones:
        raise ValueError(f'{type(model).__name__} has no backbone that could run in 16 bits: take fp32 or tf32')
    backbone, forward = backbones[0], backbones[0].forward
    device_type = next(backbone.parameters()).device.type

    def run(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        with torch.autocast(device_type, dtype):
            features = forward(*args, **kwargs)
        return features.float() if isinstance(features, Tensor) else tuple(feature.float() for feature in features)

    backbone.forward = run
    try:
        yield
    finally:
        del backbone.forward


def apply_tf32_option(cfg: Config) -> None:
    """Applies ``env_cfg.tf32`` of a training config: True or False; left out, torch's defaults stay.

    Raises:
        LaunchError: If it is something else.
    """
    choice = (cfg.get('env_cfg') or {}).get('tf32')
    if choice not in (None, True, False):
        raise LaunchError(
            f"env_cfg.tf32 is {choice!r}, wanted True, False or None (convolutions only, torch's default)"
        )
    if choice is not None:
        use_tf32(choice)
