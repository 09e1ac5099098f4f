"""Layer-wise learning-rate decay: the closer a layer is to the output, the faster it learns (BEiT, MAE, ViTDet).

A config turns it on with ``optim_wrapper=dict(constructor='ViTLayerDecayConstructor',
paramwise_cfg=dict(decay_rate=0.7))``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from timm.layers import LayerNorm2d
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.modules.batchnorm import _NormBase

from addp_backbone.networks.arch import vitdet_decay_rate

BACKBONE = 'backbone'
# _NormBase: batch, instance and synchronised norms. timm's LayerNorm2d, the norm of pyramid and heads, is an
# nn.LayerNorm, but detectron2's class of that kind is not, so that to its rule it is a layer like others.
NORM_LAYERS = (nn.LayerNorm, nn.GroupNorm, _NormBase)
WRAPPER_NAMES = ('_fsdp_wrapped_module.', '_checkpoint_wrapped_module.', '_orig_mod.')  # inserted in parameter names


def _is_norm_or_pos_embed(module: nn.Module, name: str, param: nn.Parameter) -> bool:
    """ViTDet: no decay on token norms and absolute position embeddings; channel norms and biases decay, too."""
    is_norm = isinstance(module, NORM_LAYERS) and not isinstance(module, LayerNorm2d)
    return is_norm or name.rpartition('.')[2] == 'pos_embed'


def _is_1d(module: nn.Module, name: str, param: nn.Parameter) -> bool:
    """MAE and BEiT: no decay on 1-d parameters (norms and biases)."""
    return len(whole_shape(param)) <= 1


def _is_1d_or_embedding(module: nn.Module, name: str, param: nn.Parameter) -> bool:
    """MAE's classification: no decay on 1-d parameters, nor on the position embedding and the cls token."""
    return len(whole_shape(param)) <= 1 or name.rpartition('.')[2] in ('pos_embed', 'cls_token')


def remember_shapes(model: nn.Module) -> None:
    """Notes each parameter's shape at the parameter, before FSDP flattens it."""
    for param in model.parameters():
        param.whole_shape = param.shape  # type: ignore[attr-defined]


def whole_shape(param: nn.Parameter) -> torch.Size:
    """The parameter's shape; of a shard, which is flat, that of the whole parameter."""
    return getattr(param, 'whole_shape', param.shape)


def _is_nothing(module: nn.Module, name: str, param: nn.Parameter) -> bool:
    """ViTDet's ViT-H: everything decays."""
    return False


NO_WEIGHT_DECAY: dict[str, Callable[[nn.Module, str, nn.Parameter], bool]] = {
    'norm_and_pos_embed': _is_norm_or_pos_embed,
    '1d': _is_1d,
    '1d_and_embeddings': _is_1d_or_embedding,
    'nothing': _is_nothing,
}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ViTLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Builds an optimizer whose learning rate shrinks by ``decay_rate`` with each layer, from the head to the patches.

    The learning rate of a parameter is ``lr * decay_rate ** (depth + 1 - layer)``, in the backbone times
    ``backbone_lr_mult``. ``model.backbone.get_layer_depth`` tells the layer: 0 for patch and position embedding, i + 1
    for block i, depth + 1 for everything else (neck, heads).
    Parameters of equal learning rate and weight decay share a group; frozen ones are in none.

    Args:
        optim_wrapper_cfg: mmengine's optimizer wrapper config; its ``optimizer`` needs ``lr``.
        paramwise_cfg: ``decay_rate`` in (0, 1], 1 giving every layer the same rate, or 'vitdet' (by the backbone's
            depth, :func:`vitdet_decay_rate`), and ``no_weight_decay``, the parameters without weight decay:
            'norm_and_pos_embed' (default; ViTDet's, where biases and the channel norms of pyramid and heads do decay),
            '1d' (MAE's for UperNet), '1d_and_embeddings' (MAE's for classification: also position embedding and cls
            token) or 'nothing' (ViTDet's for ViT-H, where everything decays). ``backbone_lr_mult`` in (0, 1], 1 by
            default, is for short fine-tuning, where new heads need a rate that would destroy a pre-trained backbone.

    Raises:
        ValueError: If an option is missing, unknown or out of range, or a sharded model's whole shapes are not known.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        options = {'no_weight_decay': 'norm_and_pos_embed', 'backbone_lr_mult': 1.0, **(paramwise_cfg or {})}
        if set(options) != {'decay_rate', 'no_weight_decay', 'backbone_lr_mult'}:
            raise ValueError(
                'paramwise_cfg needs decay_rate and may have no_weight_decay and backbone_lr_mult, nothing else; '
                f'got {sorted(paramwise_cfg or {})}'
            )
        mult = options['backbone_lr_mult']
        if not (isinstance(mult, int | float) and 0 < mult <= 1):
            raise ValueError(f'backbone_lr_mult must be in (0, 1], got {mult!r}')
        rate = options['decay_rate']
        if rate != 'vitdet' and not (isinstance(rate, int | float) and 0 < rate <= 1):
            raise ValueError(f"decay_rate must be in (0, 1] or 'vitdet', got {rate!r}")
        if options['no_weight_decay'] not in NO_WEIGHT_DECAY:
            raise ValueError(
                f'no_weight_decay must be one of {sorted(NO_WEIGHT_DECAY)}, got {options["no_weight_decay"]!r}'
            )
        if self.base_lr is None:
            raise ValueError(f'layer-wise decay needs lr in the optimizer, got {self.optimizer_cfg}')
        self.decay_rate = rate
        self.backbone_lr_mult = mult
        self.has_no_weight_decay = NO_WEIGHT_DECAY[options['no_weight_decay']]

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Appends the parameter groups of a model, last layers first.

        Args:
            params: List that the groups are appended to.
            module: The whole model (not wrapped for data parallelism) with a ``backbone`` that has ``get_layer_depth``,
                and may have ``no_weight_decay``: names of its parameters that never decay.
            prefix: Unused; the base class recurses with it.
            is_dcn_module: Unused, likewise.

        Raises:
            TypeError: If the model has no such backbone.
        """
        backbone = getattr(module, BACKBONE, None)
        if backbone is None or not hasattr(backbone, 'get_layer_depth'):
            raise TypeError(
                'layer-wise decay asks model.backbone.get_layer_depth(param_name, prefix), which '
                f'{type(module).__name__} with backbone {type(backbone).__name__} does not have: '
                'use ADDPViT as the backbone, or another optim_wrapper.constructor'
            )
        modules = dict(module.named_modules())
        self._refuse_unknown_shapes(modules.values())
        groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
        exempt: frozenset[str] = getattr(backbone, 'no_weight_decay', frozenset)()
        num_frozen, decay_rate = 0, self.decay_rate
        for name, param in module.named_parameters():
            if not param.requires_grad:
                num_frozen += 1
                continue
            clean_name = _without_wrappers(name)
            layer, num_layers = backbone.get_layer_depth(clean_name, f'{BACKBONE}.')
            if decay_rate == 'vitdet':
                decay_rate = vitdet_decay_rate(num_layers - 2)
            decays = clean_name.removeprefix(f'{BACKBONE}.') not in exempt
            decays &= not self.has_no_weight_decay(modules[name.rpartition('.')[0]], clean_name, param)
            in_backbone = clean_name.startswith(f'{BACKBONE}.')
            key = (layer, in_backbone and self.backbone_lr_mult != 1, decays)
            if key not in groups:
                lr = self.base_lr * decay_rate ** (num_layers - 1 - layer)
                groups[key] = dict(params=[], lr=lr * (self.backbone_lr_mult if in_backbone else 1))
                if not decays:
                    groups[key]['weight_decay'] = 0.0  # the others have the optimizer's
            groups[key]['params'].append(param)
        params.extend(groups[key] for key in sorted(groups, reverse=True))
        rates = [group['lr'] for group in groups.values()]
        print_log(
            f'layer-wise learning-rate decay {decay_rate}: {len(groups)} parameter groups, learning rates '
            f'{min(rates, default=0.0):.3g} to {max(rates, default=0.0):.3g}, {num_frozen} frozen parameters left out',
            logger='current',
        )

    def _refuse_unknown_shapes(self, modules: Iterable[nn.Module]) -> None:
        if self.has_no_weight_decay is _is_norm_or_pos_embed:
            return
        shards = [module for module in modules if isinstance(module, FullyShardedDataParallel)]
        if any(not hasattr(param, 'whole_shape') for shard in shards for param in shard.parameters()):
            raise ValueError(
                "no_weight_decay='1d' needs the parameters' whole shapes, but FSDP has flattened them: use "
                "strategy=dict(type='StageFSDPStrategy'), which notes them before"
            )


def _without_wrappers(name: str) -> str:
    """The parameter's name without what FSDP, activation checkpointing and torch.compile insert into it."""
    for wrapper in WRAPPER_NAMES:
        name = name.replace(wrapper, '')
    return name
