"""Exponential moving average of what is trained, without a second copy of what is frozen.

python tools/train.py pretrain/configs/addp_base_1600e_ema.py
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module()
class TrainedPartEMA(ExponentialMovingAverage):
    """mmengine's EMA, but frozen networks are shared with the trained model instead of copied.

    For mmengine's ``EMAHook``: ``dict(type='EMAHook', ema_type='TrainedPartEMA', momentum=1e-4)``. In checkpoints of
    such a run ``state_dict`` holds the averaged weights, so they are what is converted and generated with.

    Args:
        model: The trained model.
        momentum: Weight of the new values in each update.
        interval: Iterations between updates.
        device: Where to keep the average; None for the model's.
    """

    def __init__(
        self, model: nn.Module, momentum: float = 1e-4, interval: int = 1, device: torch.device | None = None
    ) -> None:
        frozen = {name: model.get_submodule(name) for name in _frozen_networks(model)}
        for name in frozen:
            _set_child(model, name, None)
        try:
            super().__init__(model, momentum, interval=interval, device=device)
        finally:
            for name, module in frozen.items():
                _set_child(model, name, module)
        for name, module in frozen.items():
            _set_child(self.module, name, module)


def _frozen_networks(module: nn.Module, prefix: str = '') -> Iterator[str]:
    """Yields the names of the largest submodules that have parameters, all of them frozen."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            yield prefix + name
        else:
            yield from _frozen_networks(child, f'{prefix}{name}.')


def _set_child(module: nn.Module, name: str, child: nn.Module | None) -> None:
    parent, _, last = name.rpartition('.')
    module.get_submodule(parent)._modules[last] = child  # setattr would move a child that was None to the end
