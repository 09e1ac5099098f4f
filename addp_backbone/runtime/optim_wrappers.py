"""``--amp``: mixed precision that fits the device, float16 with loss scaling or bfloat16; kernels of the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import autocast
from torch import nn
from torch.optim import Optimizer

from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.scale_lr import optim_wrappers

# How an optimizer computes its step, not what: stored with its options in checkpoints.
_IMPLEMENTATION = ('fused', 'foreach')


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Runs the forward pass in bfloat16 autocast, on any device.

    bfloat16 has float32's range and needs no loss scaling. mmengine's ``AmpOptimWrapper`` refuses to work without CUDA.
    Arguments are those of ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocasts what runs within; weights, gradients and optimizer state stay float32."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def use_amp(cfg: Config, cuda: bool | None = None) -> None:
    """Turns plain optimizer wrappers of a config into mixed-precision ones, in place.

    Args:
        cfg: Training config. ``optim_wrapper.dtype`` chooses 'float16' (with dynamic loss scaling; the default) or
            'bfloat16'.
        cuda: Whether the run has CUDA, without which it is bfloat16 in any case; None looks.

    Raises:
        LaunchError: If an optimizer wrapper is neither ``OptimWrapper`` nor one of mixed precision.
    """
    cuda = torch.cuda.is_available() if cuda is None else cuda
    for option, wrapper in optim_wrappers(cfg):
        kind = wrapper.get('type', 'OptimWrapper')
        if kind not in ('OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper'):
            raise LaunchError(f'--amp cannot turn {option}.type={kind!r} into mixed precision, wanted OptimWrapper')
        if not cuda or wrapper.get('dtype') == 'bfloat16' or kind == 'BFloat16OptimWrapper':
            wrapper['type'] = 'BFloat16OptimWrapper'
            for name in ('dtype', 'loss_scale'):
                wrapper.pop(name, None)
        else:
            wrapper['type'] = 'AmpOptimWrapper'
            wrapper.setdefault('loss_scale', 'dynamic')


def avoid_cuda_amp(cfg: Config) -> bool:
    """Replaces ``AmpOptimWrapper``, which asserts CUDA, by bfloat16 on this CPU; returns whether there was one."""
    amp = [wrapper for _, wrapper in optim_wrappers(cfg) if wrapper.get('type') == 'AmpOptimWrapper']
    if amp:
        use_amp(cfg, cuda=False)
    return bool(amp)


def keep_implementation(optimizer: Optimizer) -> None:
    """Lets an optimizer keep ``fused`` and ``foreach`` when it loads a state: torch would take those of the checkpoint.

    A run that was begun without CUDA, or before the options were switched on, goes on with the quicker step.
    """
    optimizer.register_load_state_dict_pre_hook(_with_own_implementation)


def _with_own_implementation(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    own = optimizer.param_groups
    given = state_dict['param_groups']
    if len(own) != len(given):  # torch says so
        return state_dict
    kept = [{name: group[name] for name in _IMPLEMENTATION if name in group} for group in own]
    return {**state_dict, 'param_groups': [{**group, **options} for group, options in zip(given, kept, strict=True)]}
