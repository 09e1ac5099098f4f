"""LARS, the optimizer of MAE's linear probe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmengine.registry import OPTIMIZERS
from timm.optim import Lars
from torch import nn


@OPTIMIZERS.register_module()
class LARS(Lars):
    """SGD whose step on a matrix is proportional to the matrix's norm (arXiv 1708.03888).

    timm's implementation with MAE's choice of where to adapt: parameters of one dimension (norms and biases) have
    neither adaptation nor weight decay; all others are adapted, also where there is no weight decay.

    Args:
        params: Parameters, or groups with options of their own; frozen parameters are left out.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay of parameters of more than one dimension.
        trust_coeff: A matrix' step is lr * trust_coeff * |matrix|, before momentum.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coeff: float = 0.001,
    ) -> None:
        groups = []
        for group in [entry if isinstance(entry, dict) else dict(params=[entry]) for entry in params]:
            trained = [parameter for parameter in group['params'] if parameter.requires_grad]
            matrices, vectors = ([p for p in trained if (p.ndim > 1) == matrix] for matrix in (True, False))
            groups += [{**group, 'params': matrices, 'always_adapt': True}] if matrices else []
            groups += [{**group, 'params': vectors, 'always_adapt': False, 'weight_decay': 0.0}] if vectors else []
        super().__init__(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, trust_coeff=trust_coeff)
