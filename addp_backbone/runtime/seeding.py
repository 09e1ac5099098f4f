"""Exact resume: the random numbers of a run follow from its seed and from how far it has come.

Each is a function of (seed, rank, iteration), or of (seed, position in the data stream). Nothing has to be stored, so
it does not matter where a run was cut, how many data workers it has, or whether it validated in between. A config asks
for it with ``sampler=dict(type='SeededInfiniteSampler', shuffle=True)``,
``dict(type='SeedAugmentation')`` as first step of the training pipeline, and the hook
``dict(type='SeedEachIteration')`` (tools/train.py adds the hook where it is missing).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, get_rank, sync_random_seed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import DATA_SAMPLERS, HOOKS, TRANSFORMS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Sampler

# Keeps the uses of one seed apart.
_ORDER, _SAMPLE, _ITERATION, _SUBSTITUTE = range(4)

GRADIENTS_KEY = 'partial_gradients'


def derive_seed(*parts: int) -> int:
    """A seed in [0, 2^32) that mixes several non-negative integers; near integers give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seeds ``random``, numpy and torch (all devices) of this process.

    Args:
        seed: In [0, 2^32), the range numpy takes.
    """
    seed_host(seed)
    torch.manual_seed(seed)


def seed_host(seed: int) -> None:
    """Seeds ``random``, numpy and torch's generator of the CPU, which is all that a data worker draws from.

    ``torch.manual_seed`` gives the same draws, but goes through every kind of device that torch knows, 0.2 to 0.4 ms
    each time.

    Args:
        seed: In [0, 2^32), the range numpy takes.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


class SampleIndex(int):
    """A sample's place in the data set that carries the seed of its augmentation.

    Subtraction and modulo keep the seed, for they are how ``ConcatDataset`` and ``RepeatDataset`` find the index
    within.

    Attributes:
        seed: In [0, 2^32).
    """

    seed: int

    def __new__(cls, value: int, seed: int) -> SampleIndex:  # noqa: D102
        index = super().__new__(cls, value)
        index.seed = seed
        return index

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        return int(self), self.seed

    def __sub__(self, other: int) -> SampleIndex:
        return SampleIndex(int(self) - other, self.seed)

    def __mod__(self, other: int) -> SampleIndex:
        return SampleIndex(int(self) % other, self.seed)


def substitute_index(index: int, attempt: int, size: int) -> int:
    """Draws the sample that replaces one which cannot be used.

    Args:
        index: The bad sample's place in the data set; a :class:`SampleIndex` gives its seed, others their value.
        attempt: Number of the substitute, from 1.
        size: Number of samples.

    Returns:
        In [0, size), uniform; a :class:`SampleIndex` with a seed of its own if ``index`` is one.
    """
    seed = getattr(index, 'seed', None)
    drawn = derive_seed(_SUBSTITUTE, int(index) if seed is None else seed, attempt)
    return drawn % size if seed is None else SampleIndex(drawn % size, drawn)


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(Sampler):
    """An endless stream of samples that can start anywhere at once.

    The global stream is one permutation of the data set after another, each drawn from (seed, number of the
    permutation). Of it, rank r of w takes places r, r + w, r + 2w, ... so that the ranks together see what one process
    would see.

    Args:
        dataset: The data set, not empty.
        shuffle: Whether to permute; otherwise samples come in the data set's order.
        num_repeats: Times in a row that a sample comes, each time augmented anew (repeated augmentation).
        seed: The same on all ranks; None draws one and shares it. ``SeedEachIteration`` sets it to the resumed run's
            seed.

    Raises:
        ValueError: If the data set is empty.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, num_repeats: int = 1, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        if not self.size:
            raise ValueError(
                f'the training set ({type(dataset).__name__}) has no samples, wanted at least one; see its data_root, '
                'ann_file and data_prefix (and filter_cfg, which may have dropped every image)'
            )
        if num_repeats < 1:
            raise ValueError(f'num_repeats is {num_repeats}, wanted 1 (no repeats) or more')
        self.shuffle = shuffle
        self.num_repeats = num_repeats
        self.seed = sync_random_seed() if seed is None else seed
        self.num_skipped = 0

    def __iter__(self) -> Iterator[SampleIndex]:
        """Yields from the first sample that is not skipped; never ends."""
        position = self.num_skipped * self.world_size + self.rank
        epoch = -1
        while True:
            draw = position // self.num_repeats
            if draw // self.size != epoch:
                epoch = draw // self.size
                order = self._order(epoch)
            yield SampleIndex(int(order[draw % self.size]), derive_seed(_SAMPLE, self.seed, position))
            position += self.world_size

    def __len__(self) -> int:
        """Samples of this rank in one pass over the data set, the last pass' remainder rounded up."""
        return math.ceil(self.size / self.world_size)

    def skip(self, num_samples: int) -> None:
        """Lets the next iteration begin after the first ``num_samples`` of this rank's stream, at no cost."""
        if num_samples < 0:
            raise ValueError(f'the number of samples to skip is {num_samples}, wanted 0 or more')
        self.num_skipped = num_samples

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the stream has no epochs. mmengine calls it on every sampler."""

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.default_rng((_ORDER, self.seed, epoch)).permutation(self.size)


@TRANSFORMS.register_module()
class SeedAugmentation:
    """First step of a training pipeline: seeds this process's draws on the CPU with the seed that came with the sample.

    Without a seeded sampler (validation, another sampler) and in a data set wrapper that looks indices up in a table
    (``ClassBalancedDataset``) there is no seed, and it does nothing.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Passes ``results`` on; reads ``sample_idx``, which mmengine's data sets set to the sampler's index."""
        seed = getattr(results.get('sample_idx'), 'seed', None)
        if seed is not None:
            seed_host(seed)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


@HOOKS.register_module()
class SeedEachIteration(Hook):
    """Seeds every training iteration from (seed, rank, iteration).

    So dropout, drop path and sampled boxes are the same in a resumed run. It also hands the seed of a resumed run to
    the sampler, and lets a checkpoint within a gradient accumulation (one process) keep the gradients gathered so far.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Sets the sampler's seed: the runner's comes from the checkpoint by now, the sampler was built before."""
        loader = runner.train_dataloader
        sampler = loader.sampler if hasattr(loader.sampler, 'seed') else getattr(loader.batch_sampler, 'sampler', None)
        if isinstance(sampler, SeededInfiniteSampler):
            sampler.seed = _run_seed(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seeds after the batch is loaded, before the model sees it."""
        seed_everything(derive_seed(_ITERATION, _run_seed(runner), get_rank(), runner.iter))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Adds gradients that wait for the rest of their accumulation."""
        if 'optimizer' not in checkpoint:  # weights alone (the best checkpoint), or models only
            return
        gradients = {
            name: parameter.grad.detach().cpu()
            for name, parameter in _bare_model(runner).named_parameters()
            if parameter.grad is not None
        }
        if is_accumulating(runner) and gradients:
            checkpoint[GRADIENTS_KEY] = gradients

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Puts such gradients back when resuming."""
        if not runner._resume:
            return
        gradients = checkpoint.get(GRADIENTS_KEY, {})
        for name, parameter in _bare_model(runner).named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter.device)


def is_accumulating(runner: Runner) -> bool:
    """Whether the optimizer has not stepped since the last gradients came."""
    wrapper = runner.optim_wrapper
    return getattr(wrapper, '_accumulative_counts', 1) > 1 and not wrapper.should_update()


def _run_seed(runner: Runner) -> int:
    """The seed all ranks share: with ``diff_rank_seed`` mmengine adds the rank to it."""
    return runner.seed - (get_rank() if runner._randomness_cfg.get('diff_rank_seed') else 0)


def _bare_model(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
