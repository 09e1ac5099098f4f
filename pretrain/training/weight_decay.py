"""Which parameters are decayed in pre-training: all but 1-d ones and biases (reference section 5; MAE's code does the same)."""

from __future__ import annotations

from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TwoGroupsConstructor(DefaultOptimWrapperConstructor):
    """Builds an optimizer with two parameter groups: with weight decay, and without (1-d parameters, and biases of any shape).

    Frozen parameters are in neither.

    Args:
        optim_wrapper_cfg: mmengine's optimizer wrapper config.
        paramwise_cfg: Must be empty; the two groups are the whole rule.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        if paramwise_cfg:
            raise ValueError(f'TwoGroupsConstructor has no options, got paramwise_cfg={paramwise_cfg}')
        # Not empty, as the base class then leaves the groups to us.
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
            f'{count / 1e6:.1f} million trained parameters; {len(decayed)} tensors with weight decay, {len(flat)} without',
            logger='current',
        )
