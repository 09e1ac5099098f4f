"""How much of a model is trained, in a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def describe_trained(model: nn.Module) -> str:
    """Counts trained parameters.

    Args:
        model: Of any kind, without wrappers.

    Returns:
        Text such as 'trained: 1,204,226 of 23,260,802 parameters; backbone 147,456 of 22,056,576 (low-rank differences
        of rank 8 ...), neck ..., head ...'.
    """
    parts = ', '.join(
        f'{name} {_count(child.parameters())}{_mode(child)}'
        for name, child in model.named_children()
        if any(True for _ in child.parameters())
    )
    return f'trained: {_count(model.parameters())} parameters; {parts}'


def _count(parameters: Iterable[nn.Parameter]) -> str:
    sizes = [(param.numel(), param.requires_grad) for param in parameters]
    return f'{sum(size for size, trained in sizes if trained):,} of {sum(size for size, _ in sizes):,}'


def _mode(part: Any) -> str:
    """What a backbone's :class:`addp_backbone.tuning.partial.Tuning` says; nothing for other parts."""
    tuning = getattr(part, 'tuning', None)
    if tuning is None or not tuning.keeps_stem:
        return ''
    words = []
    if tuning.frozen is True:
        words.append('frozen')
    elif tuning.frozen:
        words.append(f'the first {part.num_frozen_blocks} blocks frozen')
    if tuning.norms_only:
        words.append('norms only')
    if tuning.lora is not None:
        where = 'attention and MLP' if tuning.lora.mlp else 'attention'
        words.append(f'low-rank differences of rank {tuning.lora.rank}, scale {tuning.lora.scale:g}, in {where}')
    return f' ({", ".join(words)})'
