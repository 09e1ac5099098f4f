"""Time, memory and differences, on a GPU and on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: 'fp32', torch.float16: 'fp16', torch.bfloat16: 'bf16'}
MIB = 2**20


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference, relative to the norm of what is wanted; computed in float64 on the CPU."""
    got, wanted = got.detach().cpu().double(), wanted.detach().cpu().double()
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-12))


def largest_error(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest :func:`relative_error` of tensors in turn."""
    return max(relative_error(a, b) for a, b in zip(got, wanted, strict=True))


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done its work; nothing on a CPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def time_ms(call: Callable[[], Any], device: torch.device, repeats: int = 10, warmup: int = 3) -> float:
    """Median time of a call in ms; on a CPU of one call, as a smoke test needs no figure.

    Args:
        call: Computes on the device.
        device: Where.
        repeats: Calls that are timed, each with the GPU idle before.
        warmup: Calls before.
    """
    if device.type == 'cpu':
        repeats, warmup = 1, 0
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        call()
        wait_for(device)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


class Peak:
    """Largest memory of tensors on the GPU beyond what was there before, ``mib``; nan on a CPU, which has no count."""

    mib = float('nan')


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measures the peak memory of what runs within."""
    peak = Peak()
    if device.type != 'cuda':
        yield peak
        return
    wait_for(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield peak
    wait_for(device)
    peak.mib = (torch.cuda.max_memory_allocated(device) - before) / MIB


def saved_mib(call: Callable[[], Tensor]) -> float:
    """Memory in MiB of what a forward pass keeps for its backward pass, each storage counted once; on any device.

    Args:
        call: The forward pass. Parameters that it saves count, too.
    """
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = call()  # kept, or storages would be freed and their addresses used again
    del out
    return sum(storages.values()) / MIB


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast in a precision of 16 bits; none for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def precisions(device: torch.device) -> list[torch.dtype]:
    """float32, float16 (on a GPU) and bfloat16 (where the device has it)."""
    if device.type == 'cpu':
        return [torch.float32, torch.bfloat16]
    return [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_bf16_supported() else [])]
