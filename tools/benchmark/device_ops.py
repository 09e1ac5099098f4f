"""What a training iteration would ask of a GPU, counted on a CPU: operations, copies, and waits of the CPU for the GPU.

:class:`DeviceOps` follows which tensors would lie on the GPU: the model's, what ``.to(device)`` returns, and all that
is computed from them. It counts the operations on them; copies to the GPU that block; and operations whose result the
CPU has to read before it can go on (``.item()``, ``nonzero``, a boolean index, ...), which empty the queue of the GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result, or whose result's size, the CPU waits for.
WAITING_OPS = {
    'aten::_local_scalar_dense',
    'aten::bincount',
    'aten::equal',
    'aten::is_nonzero',
    'aten::masked_select',
    'aten::nonzero',
    'aten::_unique2',
    'aten::unique_consecutive',
    'aten::unique_dim',
    'aten::repeat_interleave.Tensor',
    'torchvision::nms',
}
_INDEXING = ('aten::index.', 'aten::index_put')
_TO_CPU = (Tensor.cpu, Tensor.tolist, Tensor.numpy)
_MADE_FROM_HOST = (torch.tensor, torch.as_tensor)
_MASKS = (torch.bool, torch.uint8)


class DeviceOps(TorchDispatchMode):
    """Counts while it is entered; may be entered several times.

    Args:
        tensors: Those that lie on the GPU from the beginning: parameters and buffers of the model.

    Attributes:
        num_ops: Operations on tensors of the GPU, views included.
        num_copies: Copies of tensors to the GPU, blocking or not.
        waits: How often the CPU would have waited, by the operation's name; blocking copies to the GPU are
            ``'copy to the GPU'``, copies from it ``'copy to the CPU'``.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.num_ops = 0
        self.num_copies = 0
        self.waits: Counter[str] = Counter()
        self._storages: dict[int, StorageWeakRef] = {}
        self._calls = _Calls(self)
        for tensor in tensors:
            self.add(tensor)

    @property
    def num_waits(self) -> int:
        """How often the CPU would have waited."""
        return sum(self.waits.values())

    def add(self, tensor: Tensor) -> None:
        """Has a tensor lie on the GPU, with all its views."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = StorageWeakRef(storage)

    def holds(self, value: Any) -> bool:
        """Whether a value is a tensor of the GPU."""
        if not isinstance(value, Tensor) or value.device.type == 'meta':
            return False
        # A weak reference keeps its address from being used again, so that a tensor never inherits a dead one's place.
        found = self._storages.get(value.untyped_storage()._cdata)
        return found is not None and not found.expired()

    def __enter__(self) -> DeviceOps:
        super().__enter__()
        self._calls.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._calls.__exit__(*exception)
        super().__exit__(*exception)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and counts it if one of its tensors lies on the GPU."""
        result = func(*args, **(kwargs or {}))
        if not any(self.holds(value) for value in _leaves((args, kwargs or {}))):
            return result
        self.num_ops += 1
        name = func.name()
        if name in WAITING_OPS or (name.startswith(_INDEXING) and _has_mask(args)):
            self.waits[name] += 1
        for value in _leaves(result):
            self.add(value)
        return result

    def copied_in(self, result: Tensor, non_blocking: bool) -> Tensor:
        """Counts a copy to the GPU; returns the copy."""
        self.num_copies += 1
        if not non_blocking:
            self.waits['copy to the GPU'] += 1
        copy = result.detach().clone()
        self.add(copy)
        return copy


class _Calls(TorchFunctionMode):
    """Sees the copies between CPU and GPU, which do nothing where both are the CPU."""

    def __init__(self, ops: DeviceOps) -> None:
        super().__init__()
        self.ops = ops

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _TO_CPU or (func is Tensor.to and 'cpu' in args[1:]):
            return self._copy_out(func, args, kwargs)
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        if func is Tensor.to and _names_device((*args[1:], *kwargs.values())) and not self.ops.holds(args[0]):
            return self.ops.copied_in(result, bool(kwargs.get('non_blocking')))
        # Only code that means the CPU says 'cpu'; code that means the model's device passes a torch.device.
        if kwargs.get('device') not in (None, 'cpu') and not self.ops.holds(result) and func is not Tensor.to:
            if func in _MADE_FROM_HOST:
                return self.ops.copied_in(result, non_blocking=False)
            self.ops.add(result)
        return result

    def _copy_out(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self.ops.holds(args[0]):
            self.ops.waits['copy to the CPU'] += 1
        result = func(*args, **kwargs)
        # A real copy, so that what is computed from it counts as the CPU's.
        return torch.from_numpy(result.detach().numpy().copy()) if isinstance(result, Tensor) else result


def _leaves(node: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(node, Tensor):
        return [node]
    if isinstance(node, Mapping):
        node = node.values()
    elif not isinstance(node, list | tuple):
        return []
    return [leaf for value in node for leaf in _leaves(value)]


def _has_mask(args: tuple[Any, ...]) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(index, Tensor) and index.dtype in _MASKS for index in indices)


def _names_device(options: Iterable[Any]) -> bool:
    return any(isinstance(option, torch.device | Tensor) for option in options)
