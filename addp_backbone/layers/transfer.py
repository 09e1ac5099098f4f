"""Copies from the CPU to a device that do not make the CPU wait."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Copies small tensors of the CPU to a device without waiting for the copy.

    Args:
        device: Where to; on CUDA the copies go through pinned memory.
        tensors: Of any shape and dtype.

    Returns:
        The copies; the tensors themselves where they are there already.
    """
    if device.type == 'cuda':
        tensors = tuple(tensor.pin_memory() if tensor.device.type == 'cpu' else tensor for tensor in tensors)
    return [tensor.to(device, non_blocking=True) for tensor in tensors]
