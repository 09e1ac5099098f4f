"""Data workers that cannot hang a run: a timeout, and a check of the shared memory that carries their batches."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.data import DataLoader

from addp_backbone.runtime.config_checks import LaunchError

WORKER_TIMEOUT_S = 600  # until a batch must have come; no single batch takes that long, a hanging disk may
SHARED_MEMORY = Path('/dev/shm')


def set_worker_timeouts(cfg: Config, timeout_s: float = WORKER_TIMEOUT_S) -> None:
    """Gives every data loader with workers a ``timeout``, unless the config has one; changes ``cfg``.

    Loaders without workers have none, as torch wants it: the config that a run leaves in its work dir has the timeout,
    and may be used again with ``num_workers=0``.
    """
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if not loader:
            continue
        if loader.get('num_workers', 0) > 0:
            loader.setdefault('timeout', timeout_s)
        else:
            loader.pop('timeout', None)


@HOOKS.register_module()
class CheckSharedMemory(Hook):
    """Refuses to train if the data workers' batches do not fit into shared memory: a bus error would kill them."""

    def before_train(self, runner: Runner) -> None:
        """Measures the first sample of the data set.

        Raises:
            LaunchError: If the batches that workers prepare ahead are larger than what is free.
        """
        loader = runner.train_dataloader
        if not loader.num_workers or not SHARED_MEMORY.is_dir():
            return
        check_shared_memory(needed_bytes(loader), shutil.disk_usage(SHARED_MEMORY).free, loader.num_workers)


def check_shared_memory(needed: int, free: int, num_workers: int) -> None:
    """Compares what workers need with what is free, in bytes.

    Raises:
        LaunchError: If it is too little.
    """
    if needed > free:
        raise LaunchError(
            f'{num_workers} data workers need about {needed / 1e6:.0f} MB of shared memory for the batches they '
            f'prepare, {SHARED_MEMORY} has {free / 1e6:.0f} MB free: docker run --shm-size=8g ..., a smaller '
            'train_dataloader.num_workers, or --cfg-options train_dataloader.num_workers=0 '
            'train_dataloader.persistent_workers=False'
        )


def needed_bytes(loader: DataLoader) -> int:
    """About how much shared memory the batches take that the workers of a loader hold ready; 0 if it cannot be told."""
    with _unchanged_generators():
        try:
            sample = loader.dataset[0]
        except Exception:  # whatever is wrong with it is reported when training reads it
            return 0
    batch_size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None) or 1
    num_batches = loader.num_workers * (loader.prefetch_factor or 0)
    return sum(tensor.nbytes for tensor in _tensors(sample)) * batch_size * num_batches


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, BaseDataElement):
        for value in node.all_values():
            yield from _tensors(value)
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _tensors(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _tensors(value)


@contextmanager
def _unchanged_generators() -> Iterator[None]:
    """Puts the random generators back: looking at a sample must not change a run."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
