"""The strict match of names and shapes between a checkpoint and a network, and finding the state dict in a checkpoint.

Everything that loads weights compares them here: nothing is loaded unless every tensor is there and fits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from addp_backbone.checkpoint.errors import CheckpointError, refuse_partial

WRAPPER_KEYS = ('model', 'state_dict', 'module', 'model_state')  # under which training programs store a state dict
MAX_NAMES = 10  # listed in an error, of each kind


@dataclass
class Mismatch:
    """In what the tensors of a checkpoint differ from those that a network wants; false if in nothing.

    Attributes:
        missing: Wanted names that the checkpoint lacks.
        unexpected: Names in the checkpoint that nobody wants.
        shapes: Name -> (shape found, shape wanted), where the two differ.
        kinds: Name -> what the entry is instead of a tensor of the wanted kind of numbers, all of them finite.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes or self.kinds)

    def __str__(self) -> str:
        shapes = [f'{name} {found} instead of {wanted}' for name, (found, wanted) in self.shapes.items()]
        text = (
            f'Missing: {listed(self.missing)}. Unknown to the model: {listed(self.unexpected)}. '
            f'Of another shape: {listed(shapes)}'
        )
        return f'{text}. {listed([f"{name} {kind}" for name, kind in self.kinds.items()])}' if self.kinds else text

    def lines(self, prefix: str = '') -> Iterator[str]:
        """One line for each of the first tensors of each kind.

        Args:
            prefix: Stands before every name.
        """
        for group in (
            [f'{prefix}{name} is missing' for name in self.missing],
            [
                *(f'{prefix}{name} {kind}' for name, kind in self.kinds.items()),
                *(
                    f'{prefix}{name} has shape {found}, wanted {wanted}'
                    for name, (found, wanted) in self.shapes.items()
                ),
            ],
            [f'{prefix}{name} is not known' for name in self.unexpected],
        ):
            yield from group[:MAX_NAMES]
            if len(group) > MAX_NAMES:
                yield f'... and {len(group) - MAX_NAMES} more like these'


def match_tensors(
    given: Mapping[str, Any], wanted: Mapping[str, Tensor | Sequence[int]], optional: Collection[str] = ()
) -> Mismatch:
    """Compares a checkpoint's tensors with those that a network wants.

    Args:
        given: The checkpoint's state dict; the tensors may be numpy arrays.
        wanted: The network's tensors by name, or shapes. Of a tensor the kind of numbers is compared too: floating
            point weights must not come from integers, nor the other way round. Precisions may differ. Values that are
            not finite are never wanted: training would call them a loss that diverged.
        optional: Wanted names that may be absent.

    Returns:
        All differences; names in the order of ``wanted``, unexpected ones in that of ``given``.
    """
    found = Mismatch(unexpected=[name for name in given if name not in wanted])
    for name, target in wanted.items():
        if name not in given:
            if name not in optional:
                found.missing.append(name)
            continue
        tensor = given[name]
        shape = tuple(target.shape) if isinstance(target, Tensor) else tuple(target)
        if not isinstance(tensor, Tensor | np.ndarray):
            found.kinds[name] = f'is a {type(tensor).__name__}, wanted a tensor'
        elif tuple(tensor.shape) != shape:
            found.shapes[name] = (tuple(tensor.shape), shape)
        elif isinstance(target, Tensor) and _is_floating(tensor) != target.is_floating_point():
            kind = 'floating point' if target.is_floating_point() else str(target.dtype)
            found.kinds[name] = f'holds {tensor.dtype}, wanted {kind}'
        elif isinstance(target, Tensor) and _is_meta(tensor) and not target.is_meta:
            found.kinds[name] = 'has a shape but no values (device meta)'
        elif not _is_finite(tensor):
            found.kinds[name] = 'holds values that are not finite'
    return found


def _is_floating(tensor: Tensor | np.ndarray) -> bool:
    return tensor.is_floating_point() if isinstance(tensor, Tensor) else tensor.dtype.kind == 'f'


def _is_meta(tensor: Tensor | np.ndarray) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_meta


def _is_finite(tensor: Tensor | np.ndarray) -> bool:
    """Whether all values are finite, by one sum, in which an infinite or undefined one shows."""
    if not _is_floating(tensor) or _is_meta(tensor):
        return True
    values = tensor if isinstance(tensor, Tensor) else torch.from_numpy(tensor)
    total = values.float().sum() if values.itemsize < 4 else values.sum()
    return bool(total.isfinite()) or bool(values.isfinite().all())  # finite values may have an infinite sum


def load_strictly(module: nn.Module, tensors: Mapping[str, Any], source: str, advice: str) -> None:
    """Loads a state dict into a module, or nothing at all.

    Args:
        module: Receives the weights. Frozen networks that its state dict leaves out may be given, but then in full.
        tensors: The state dict, by the module's names.
        source: What it comes from, for the error.
        advice: How to mend a mismatch, for the error: a sentence without its full stop.

    Raises:
        CheckpointError: If a tensor is missing, unexpected, of another shape or of another kind of numbers.
    """
    frozen = {name: tensor for name, tensor in module.named_parameters() if name in tensors}
    mismatch = match_tensors(tensors, {**frozen, **module.state_dict()})
    if mismatch:
        raise CheckpointError(f'{source} does not fit {type(module).__name__}. {mismatch}. {advice}')
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:  # a frozen network that is there in part
        raise CheckpointError(f'{source} does not fit {type(module).__name__}. {error}. {advice}') from error


def unwrap_state_dict(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Finds the state dict in a checkpoint: the checkpoint itself, or what it has under one of :data:`WRAPPER_KEYS`.

    Raises:
        CheckpointError: If there is none, or more than one.
    """
    return split_checkpoint(checkpoint)[0]


def split_checkpoint(checkpoint: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Finds the state dict in a checkpoint, as :func:`unwrap_state_dict`, and what lies beside it.

    Returns:
        The state dict, and the entries outside of it (optimizer, epoch, arguments ...).

    Raises:
        CheckpointError: If there is no state dict, more than one, one whose names are no text, or a part of one without
            its frozen base.
    """
    refuse_partial(checkpoint, 'the checkpoint')
    if any(isinstance(value, Tensor | np.ndarray) for value in checkpoint.values()):
        if unnamed := [name for name in checkpoint if not isinstance(name, str)]:
            raise CheckpointError(f'an entry is called {unnamed[0]!r}, which is no name of a tensor')
        return checkpoint, {}
    nested = [key for key in WRAPPER_KEYS if isinstance(checkpoint.get(key), Mapping)]
    if len(nested) > 1:
        names = ' and '.join(f'"{key}"' for key in nested)
        raise CheckpointError(f'the checkpoint holds both {names}: pass the one that is wanted')
    if not nested:
        raise CheckpointError(
            f'no tensors found: the checkpoint has the keys {sorted(map(str, checkpoint))[:20]}, wanted a state dict, '
            f'or one under {", ".join(WRAPPER_KEYS)}'
        )
    tensors, beside = split_checkpoint(checkpoint[nested[0]])
    return tensors, {**{key: value for key, value in checkpoint.items() if key != nested[0]}, **beside}


def listed(names: Sequence[str]) -> str:
    """The first names and how many more there are; 'none' if there is none."""
    more = f' and {len(names) - MAX_NAMES} more' if len(names) > MAX_NAMES else ''
    return (', '.join(names[:MAX_NAMES]) + more) or 'none'
