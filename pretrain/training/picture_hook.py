"""A picture every so often that shows whether training works: ``<work_dir>/pictures/iter_000500.png``, and in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend
from PIL import Image
from torch import Tensor

from addp_backbone.files.images import write_png
from addp_backbone.runtime.seeding import SampleIndex
from pretrain.data.figures import contact_sheet, to_pictures


@HOOKS.register_module()
class PictureHook(Hook):
    """Asks the model for the columns of a picture (``draw_columns``) and saves them, always of the same images.

    The first picture is made before training. Pictures do not change the run: their randomness is their own.

    Args:
        interval: Iterations between pictures; 0 makes none.
        num_images: Rows; images spread evenly over the training set.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 1000, num_images: int = 4) -> None:
        self.interval = interval
        self.num_images = num_images
        self._images: Tensor | None = None

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Saves the picture of the untrained model."""
        if self.interval and runner.iter == 0:
            self._save(runner, 0)

    @master_only
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Saves a picture when it is time, and after the last iteration."""
        if self.interval and (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            self._save(runner, runner.iter + 1)

    def _save(self, runner: Runner, iteration: int) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if self._images is None:
            self._images = pick_images(runner.train_dataloader.dataset, self.num_images, model)
        columns = model.draw_columns(self._images, torch.Generator().manual_seed(0))
        picture = compose(columns)
        path = Path(runner.work_dir) / 'pictures' / f'iter_{iteration:06d}.png'
        write_png(picture, path)
        for backend in runner.visualizer._vis_backends.values():
            if not isinstance(backend, LocalVisBackend):  # that one would write a second file
                backend.add_image('training', np.asarray(picture), iteration)


def compose(columns: Mapping[str, Tensor]) -> Image.Image:
    """Puts columns of images beside each other under their titles.

    Args:
        columns: Title -> (N, 3, H, W), clamped to [0, 1] here; the same shape for all.

    Returns:
        An RGB picture; small images are enlarged to the width of a title.
    """
    rows = zip(*(to_pictures(images) for images in columns.values()), strict=True)
    return contact_sheet([picture for row in rows for picture in row], columns=len(columns), titles=list(columns))


def pick_images(dataset: Any, count: int, model: Any) -> Tensor:
    """Images of a data set, evenly spread, as the model gets them; a seeded index makes their augmentation the same each time."""
    places = [i * len(dataset) // count for i in range(min(count, len(dataset)))]
    samples = [dataset[SampleIndex(place, seed=place)] for place in places]
    batch = dict(
        inputs=[sample['inputs'] for sample in samples], data_samples=[sample['data_samples'] for sample in samples]
    )
    return model.data_preprocessor(batch, False)['inputs']
