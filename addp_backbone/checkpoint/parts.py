"""Files with several networks (student and teacher, trained and averaged weights): listing the ViTs, choosing one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.matching import unwrap_state_dict
from addp_backbone.checkpoint.transformers_names import ANCHOR as TRANSFORMERS_ANCHOR

ANCHOR = 'blocks.0.attn.qkv.weight'
_AVERAGED = re.compile(r'(^|[._])(ema|teacher|momentum|target)([._]|$)')
_NO_NETWORKS = ('optimizer', 'optimizer_states', 'optim_wrapper', 'scaler', 'callbacks', 'loops', 'message_hub', 'meta')


def find_vits(names: Mapping[str, Any]) -> list[str]:
    """What stands in front of the names of each ViT in a flat state dict; frozen token predictors do not count."""
    prefixes = [
        name.removesuffix(anchor)
        for anchor in (ANCHOR, TRANSFORMERS_ANCHOR)
        for name in names
        if name == anchor or name.endswith('.' + anchor)
    ]
    found = [prefix for prefix in prefixes if 'token_predictor.' not in prefix]
    if len(found) < 2:
        return found
    # stages of Swin have blocks too, but no patches of their own
    return [p for p in found if f'{p}patch_embed.proj.weight' in names or p + TRANSFORMERS_ANCHOR in names]


def choose_part(
    checkpoint: Mapping[str, Any], prefix: str | None = None, averaged: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """The state dict of a checkpoint, or of one network in it.

    Args:
        checkpoint: What a file holds: a state dict, or one or several within dicts.
        prefix: What stands in front of the names of the ViT that is wanted, or the beginning of it; names of the dicts
            that it lies in count (``'teacher.backbone.'``).
        averaged: Take the ViT with averaged weights: with a ``teacher``, ``ema``, ``momentum`` or ``target`` in front.

    Returns:
        Names and tensors; and the names of what lies outside the chosen part, with the reason.

    Raises:
        CheckpointError: If there are several ViTs and none is chosen, or the choice fits none or several; the message
            lists them.
    """
    flat = dict(_flatten(checkpoint))
    vits = find_vits(flat)
    if prefix is None and not averaged:
        if len(vits) > 1 and not _is_swapped(checkpoint):
            raise CheckpointError(_question('the file holds', vits))
        return dict(unwrap_state_dict(_container(checkpoint, vits))), {}
    if prefix is None:
        chosen = [vit for vit in vits if _AVERAGED.search(vit)]
        wanted = 'averaged weights (--ema)'
    else:
        chosen = _behind(prefix, vits)
        wanted = f'--prefix {prefix}'
    if len(chosen) != 1:
        raise CheckpointError(f'{wanted}: {len(chosen)} ViTs fit. {_question("The file holds", vits)}')
    start = chosen[0].removesuffix('net.')  # detectron2's pyramid stands beside its net
    part = {name.removeprefix(start): tensor for name, tensor in flat.items() if name.startswith(start)}
    return part, {name: f'not of the part {start!r}' for name in flat if not name.startswith(start)}


def _behind(prefix: str, vits: list[str]) -> list[str]:
    """The ViTs that a prefix means: exactly, or those whose names begin with it or have it within."""
    dotted = prefix if prefix.endswith('.') or not prefix else f'{prefix}.'
    exact = [vit for vit in vits if vit == dotted]
    return exact or [vit for vit in vits if f'.{vit}'.find(f'.{dotted}') >= 0]


def _question(start: str, vits: list[str]) -> str:
    parts = ', '.join(f'{vit!r}{" (averaged)" if _AVERAGED.search(vit) else ""}' for vit in vits) or 'no ViT'
    return (
        f'{start} {len(vits)} ViT{"" if len(vits) == 1 else "s"}, whose names begin with {parts}. Choose with '
        '--prefix, or --ema for averaged weights, of tools/convert_checkpoint.py'
    )


def _flatten(node: Mapping[str, Any], path: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Tensor | np.ndarray):
            yield f'{path}{key}', value
        elif isinstance(value, Mapping) and key not in _NO_NETWORKS:
            yield from _flatten(value, f'{path}{key}.')


def _is_swapped(checkpoint: Mapping[str, Any]) -> bool:
    """Whether mmengine wrote it: ``state_dict`` has the averaged weights then, ``ema_state_dict`` the trained ones."""
    meta = checkpoint.get('meta')
    return isinstance(meta, Mapping) and 'mmengine_version' in meta and 'state_dict' in checkpoint


def _container(checkpoint: Mapping[str, Any], vits: list[str]) -> Mapping[str, Any]:
    """The dict to look into: the checkpoint, or its entry that has the only ViT under a name of its own."""
    first = vits[0].partition('.')[0] if vits else ''
    inner = checkpoint.get(first)
    return inner if len(vits) == 1 and isinstance(inner, Mapping) else checkpoint
