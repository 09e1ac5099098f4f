"""Checkpoints of partial fine-tuning: what was trained, and a digest of the frozen base that it belongs to.

A run that trains low-rank differences or norms saves heads, differences and whatever else the base's file does not
hold. The tensors that the file gives (``model.backbone.init_cfg``) are left out; the checkpoint has their names and
their digest under :data:`FROZEN_BASE`. Whoever loads it takes them from that file and compares the digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from addp_backbone.checkpoint.errors import FROZEN_BASE, MERGE_COMMAND, CheckpointError, refuse_partial

_PREFIX = 'backbone.'
_model: ContextVar[nn.Module | None] = ContextVar('model', default=None)


@dataclass(frozen=True)
class FrozenBase:
    """The part of a model that its backbone's file gives and training leaves alone.

    Attributes:
        names: Of its tensors, in the model.
        digest: SHA-256 of names and values.
        source: The file, or where else they came from, for people.
    """

    names: tuple[str, ...]
    digest: str
    source: str


def initialise(model: nn.Module, init: Callable[[], None]) -> FrozenBase | None:
    """Initialises a model, and finds out what of its backbone's frozen part the backbone's file gives.

    Args:
        model: Has a ``backbone`` with ``init_cfg``, perhaps with ``pretrained``.
        init: Gives the model its initial weights.

    Returns:
        The frozen base; None if the backbone has no frozen part, or no file.
    """
    backbone: Any = getattr(model, 'backbone', None)
    source = _source(backbone)
    frozen = {} if source is None else {n: p for n, p in backbone.named_parameters() if not p.requires_grad}
    before = {name: param._version for name, param in frozen.items()}  # torch counts writes
    init()
    given = {_PREFIX + name: param for name, param in frozen.items() if param._version != before[name]}
    return FrozenBase(tuple(given), digest(given), str(source)) if given else None


def _source(backbone: Any) -> str | None:
    """What a backbone's weights come from; None if they are random."""
    init_cfg = getattr(backbone, 'init_cfg', None)
    if isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained':
        return str(init_cfg['checkpoint'])
    return f'timm/{backbone.model_name}' if getattr(backbone, 'pretrained', False) else None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, shapes and precisions, whatever their order."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f'{name} {tuple(tensor.shape)} {tensor.dtype}\n'.encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def leave_out_base(checkpoint: dict[str, Any], base: FrozenBase) -> None:
    """Takes the frozen base out of a checkpoint and notes its names and digest there.

    Args:
        checkpoint: With the model's tensors under ``state_dict``; a new dict takes their place.
        base: From :func:`initialise`.
    """
    names = set(base.names)
    checkpoint['state_dict'] = {n: tensor for n, tensor in checkpoint['state_dict'].items() if n not in names}
    checkpoint[FROZEN_BASE] = dict(names=list(base.names), digest=base.digest, source=base.source)


def complete(checkpoint: dict[str, Any], model: nn.Module, path: str) -> None:
    """Puts the frozen base back into a checkpoint, from the file that the model's config names; checks the digest.

    Args:
        checkpoint: As it was read; changed in place. One that is whole is left as it is.
        model: Built from the config. If its backbone's weights are others, they are loaded from ``init_cfg``.
        path: The checkpoint's file, for messages.

    Raises:
        CheckpointError: If the config names no file, or one with another base.
    """
    note = checkpoint.get(FROZEN_BASE)
    if note is None:
        return
    names, wanted = list(note['names']), note['digest']
    backbone: Any = getattr(model, 'backbone', None)
    own = model.state_dict()
    if unknown := [name for name in names if name not in own]:
        raise CheckpointError(
            f'{path} holds what was trained on a frozen base, {note["source"]}, of which this config has no '
            f'{unknown[0]}: use the config that it was trained with'
        )
    if digest({name: own[name] for name in names}) != wanted:
        source = _source(backbone)
        if source is None:
            raise CheckpointError(
                f'{path} holds only what was trained; the frozen base is {note["source"]}: set '
                f'model.backbone.init_cfg to it, or make the checkpoint whole where it lies: {MERGE_COMMAND}'
            )
        backbone.init_weights()
        own = model.state_dict()
        if digest({name: own[name] for name in names}) != wanted:
            raise CheckpointError(
                f'{path} was trained on the frozen base {note["source"]} (SHA-256 {wanted[:12]}...), but '
                f'model.backbone.init_cfg gives another one, {source}: name the file that training began with'
            )
        print_log(f'{path}: {len(names)} tensors of the frozen base from {source}', logger='current')
    checkpoint['state_dict'] = {**checkpoint['state_dict'], **{name: own[name].clone() for name in names}}
    del checkpoint[FROZEN_BASE]


@contextmanager
def completing(model: nn.Module) -> Iterator[None]:
    """Within, mmengine's loader completes checkpoints by a model's frozen base (:func:`complete`)."""
    token = _model.set(model)
    try:
        yield
    finally:
        _model.reset(token)


def complete_or_refuse(checkpoint: dict[str, Any], path: str) -> None:
    """Completes a checkpoint within :func:`completing`; elsewhere it refuses one without its base.

    Raises:
        CheckpointError: As :func:`complete`, or if it cannot be completed here.
    """
    if FROZEN_BASE not in checkpoint:
        return
    model = _model.get()
    if model is None:
        refuse_partial(checkpoint, path)
    else:
        complete(checkpoint, model, path)
