"""Which parameters decay in pre-training, and LARS, the optimizer of MAE's linear probe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from timm.optim import Lars
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TwoGroupsConstructor(DefaultOptimWrapperConstructor):
    """Builds two parameter groups: with weight decay, and without (1-d parameters and biases of any shape).

    This is the rule of MAE's code and of the published pre-training. Frozen parameters are in neither group.

    Args:
        optim_wrapper_cfg: mmengine's optimizer wrapper config.
        paramwise_cfg: Must be empty; there are no options.

    Raises:
        ValueError: If ``paramwise_cfg`` is not empty.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        if paramwise_cfg:
            raise ValueError(f'TwoGroupsConstructor has no options, got paramwise_cfg={paramwise_cfg}')
        # Not empty, because only then does the base class call add_params.
        super().__init__(optim_wrapper_cfg, dict(bypass_duplicate=False))

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Appends the two groups; arguments as in the base class."""
        trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        flat = [parameter for name, parameter in trained if parameter.ndim <= 1 or name.rpartition('.')[2] == 'bias']
        without = {id(parameter) for parameter in flat}
        decayed = [parameter for _, parameter in trained if id(parameter) not in without]
        params += [dict(params=decayed), dict(params=flat, weight_decay=0.0)]
        count = sum(parameter.numel() for _, parameter in trained)
        print_log(
            f'{count / 1e6:.1f} million trained parameters; {len(decayed)} tensors with weight decay, '
            f'{len(flat)} without',
            logger='current',
        )


@OPTIMIZERS.register_module()
class LARS(Lars):
    """SGD whose step on a matrix is proportional to the matrix's norm (arXiv 1708.03888).

    timm's implementation with MAE's choice of where to adapt: parameters of one dimension (norms and biases) have
    neither adaptation nor weight decay; all others are adapted, also where there is no weight decay.

    Args:
        params: Parameters, or groups with options of their own; frozen parameters are left out.
        lr: Learning rate, before the layer-wise adaptation.
        momentum: Momentum of the SGD step, in [0, 1).
        weight_decay: Weight decay of parameters of more than one dimension.
        trust_coeff: The step of a matrix has the norm lr * trust_coeff * |matrix|, before momentum.
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
