"""Whether "float32" on CUDA means float32: TensorFloat-32 rounds the factors of products to 10 bits of mantissa.

torch uses it in convolutions, but not in matrix products, unless told otherwise. Where float32 is promised
(evaluation, ``tools/generate.py --precision fp32``, comparisons) it is off in both; a training config chooses with
``env_cfg.tf32``. The flags mean nothing on other devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config

from addp_backbone.runtime.config_checks import LaunchError


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
