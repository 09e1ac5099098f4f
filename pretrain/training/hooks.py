"""Hooks of pre-training and classification: throughput, codebook revival, figures, shared buffers, weight averaging.

Weight averaging is mmengine's ``EMAHook``; :class:`TrainedPartEMA` is the average that it keeps.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast, get_world_size, master_only
from mmengine.hooks import Hook
from mmengine.model import ExponentialMovingAverage, is_model_wrapper
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend
from PIL import Image
from torch import Tensor, nn

from addp_backbone.files.images import write_png
from addp_backbone.runtime.seeding import SampleIndex
from pretrain.data.figures import contact_sheet, to_pil

FIGURES_FOLDER = 'figures'  # in the work dir
_RSS_UNIT_BYTES = 1 if sys.platform == 'darwin' else 1024


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Adds ``images_per_s`` (all processes) to the log and, without CUDA, ``peak_memory_mib`` of this process.

    On CUDA mmengine logs the memory itself. Time is that of the last iterations, waiting for data included.
    """

    priority = 'NORMAL'  # after IterTimerHook, which default_hooks registers first; before LoggerHook

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Updates both figures."""
        hub = runner.message_hub
        seconds = hub.get_scalar('train/time').current()
        hub.update_scalar('train/images_per_s', len(data_batch['inputs']) * get_world_size() / max(seconds, 1e-9))
        if not torch.cuda.is_available():
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES
            hub.update_scalar('train/peak_memory_mib', peak / 2**20)


@HOOKS.register_module()
class ReviveCodesHook(Hook):
    """Moves dead codes of the tokenizer to where they will be used.

    Args:
        interval: Iterations between revivals; rarer ones give moved codes time to settle.
        stop_after_iters: Number of iterations after which no code is revived, so that the codebook settles; None never
            stops.
    """

    priority = 'ABOVE_NORMAL'  # before logging and saving

    def __init__(self, interval: int = 20, stop_after_iters: int | None = None) -> None:
        self.interval = interval
        self.stop_after_iters = stop_after_iters

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Revives codes and logs their number as ``codes_revived``."""
        if self.stop_after_iters is not None and runner.iter >= self.stop_after_iters:
            return
        if self.every_n_train_iters(runner, self.interval):
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            runner.message_hub.update_scalar('train/codes_revived', model.revive_codes())


@HOOKS.register_module()
class FigureHook(Hook):
    """Saves a figure that shows whether training works: ``<work_dir>/figures/iter_000500.png``, and in TensorBoard.

    The model draws its columns (``draw_columns``), always for the same images. The first figure is made before training
    starts. Figures draw from generators of their own and do not change the run.

    Args:
        interval: Iterations between figures; 0 makes none.
        num_images: Number of rows; the images are spread evenly over the training set.
    """

    priority = 'LOW'
    optional_output = True  # where drawing or writing fails, the run goes on

    def __init__(self, interval: int = 1000, num_images: int = 4) -> None:
        self.interval = interval
        self.num_images = num_images
        self._images: Tensor | None = None

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Saves the figure of the untrained model."""
        if self.interval and runner.iter == 0:
            self._save(runner, 0)

    @master_only
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Saves a figure every ``interval`` iterations and after the last one."""
        if self.interval and (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            self._save(runner, runner.iter + 1)

    def _save(self, runner: Runner, iteration: int) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if self._images is None:
            self._images = pick_images(runner.train_dataloader.dataset, self.num_images, model)
        figure = compose(model.draw_columns(self._images, torch.Generator().manual_seed(0)))
        write_png(figure, Path(runner.work_dir) / FIGURES_FOLDER / f'iter_{iteration:06d}.png')
        for backend in runner.visualizer._vis_backends.values():
            if not isinstance(backend, LocalVisBackend):  # which would write a second file
                backend.add_image('training', np.asarray(figure), iteration)


def compose(columns: Mapping[str, Tensor]) -> Image.Image:
    """Puts columns of images side by side under their titles.

    Args:
        columns: Maps titles to images (N, 3, H, W), all of one shape; clamped to [0, 1] here.

    Returns:
        An RGB image; small images are enlarged to the width of a title.
    """
    rows = zip(*(to_pil(images) for images in columns.values()), strict=True)
    return contact_sheet([image for row in rows for image in row], columns=len(columns), titles=list(columns))


def pick_images(dataset: Any, count: int, model: Any) -> Tensor:
    """Picks images evenly from a data set, preprocessed as the model gets them, with the same augmentation every time.

    Args:
        dataset: A data set whose pipeline starts with ``SeedAugmentation``.
        count: Number of images; all if the data set has fewer.
        model: The model, for its data preprocessor.

    Returns:
        (N, 3, H, W), in [0, 1] for the models of pre-training.
    """
    indices = [i * len(dataset) // count for i in range(min(count, len(dataset)))]
    samples = [dataset[SampleIndex(index, seed=index)] for index in indices]
    batch = dict(
        inputs=[sample['inputs'] for sample in samples], data_samples=[sample['data_samples'] for sample in samples]
    )
    return model.data_preprocessor(batch, False)['inputs']


@HOOKS.register_module()
class ShareBuffersHook(Hook):
    """Copies the first process' buffers (running mean and variance) to all processes before validation.

    Checkpoints hold the first process' buffers. mmengine's ``SyncBuffersHook`` averages them after a checkpoint is
    written, so that a test of the checkpoint would not repeat the validation's accuracy.
    """

    def before_val_epoch(self, runner: Runner) -> None:
        """Broadcasts the buffers; does nothing in a run of one process."""
        for buffer in runner.model.buffers():
            broadcast(buffer, src=0)


@MODELS.register_module()
class TrainedPartEMA(ExponentialMovingAverage):
    """mmengine's EMA, but frozen networks are shared with the trained model instead of copied.

    For mmengine's ``EMAHook``: ``dict(type='EMAHook', ema_type='TrainedPartEMA', momentum=1e-4)``. In checkpoints of
    such a run ``state_dict`` holds the averaged weights, so they are what is converted and generated with.

    Args:
        model: The trained model.
        momentum: Weight of the new values in each update, in (0, 1).
        interval: Number of iterations between updates.
        device: Device that holds the average; None for the device of the model.
    """

    def __init__(
        self, model: nn.Module, momentum: float = 1e-4, interval: int = 1, device: torch.device | None = None
    ) -> None:
        frozen = {name: model.get_submodule(name) for name in _frozen_networks(model)}
        for name in frozen:
            _set_child(model, name, None)
        try:
            super().__init__(model, momentum, interval=interval, device=device)
        finally:
            for name, module in frozen.items():
                _set_child(model, name, module)
        for name, module in frozen.items():
            _set_child(self.module, name, module)


def _frozen_networks(module: nn.Module, prefix: str = '') -> Iterator[str]:
    """Yields the names of the largest submodules that have parameters, all of them frozen."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            yield prefix + name
        else:
            yield from _frozen_networks(child, f'{prefix}{name}.')


def _set_child(module: nn.Module, name: str, child: nn.Module | None) -> None:
    parent, _, last = name.rpartition('.')
    module.get_submodule(parent)._modules[last] = child  # setattr would move a child that was None to the end
