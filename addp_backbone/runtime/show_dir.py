"""``tools/test.py --show-dir``: an overlay of every test image beside its labels, in the folders of the data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from addp_backbone.files.images import read_pixels


@HOOKS.register_module()
class DrawTestImages(Hook):
    """Draws each test image by the run's visualizer, in the frame that the model saw.

    mmdet's and mmseg's hooks write all images into one folder, where equal names replace each other, and read them
    without the EXIF orientation of PNG, WebP and TIFF. An overlay that cannot be written is warned of.

    Args:
        folder: Where overlays go.
        name: Format of a file's name: ``{name}`` is the image's, ``{index}`` counts images from 1.
        options: What the visualizer takes besides.
    """

    def __init__(self, folder: str, name: str = '{name}', options: dict[str, Any] | None = None) -> None:
        self.folder, self.name, self.options = Path(folder), name, options or {}
        self.index = 0

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Draws the images of a batch."""
        visualizer: Any = Visualizer.get_current_instance()
        for sample in outputs or ():
            self.index += 1
            inside = path_in_dataset(sample.img_path, image_folders(runner.test_dataloader.dataset))
            target = self.folder / inside.parent / self.name.format(name=inside.name, index=self.index)
            image = np.ascontiguousarray(read_pixels(sample.img_path)[..., ::-1])
            try:
                visualizer.add_datasample(
                    'test', image, data_sample=sample, out_file=str(target), step=self.index, **self.options
                )
            except OSError as error:
                print_log(f'--show-dir: {target} cannot be written: {error}', logger='current', level=logging.WARNING)


def image_folders(dataset: Any) -> list[Path]:
    """The folders of images of a data set, within wrappers and concatenations."""
    inner = [*getattr(dataset, 'datasets', ()), *([dataset.dataset] if hasattr(dataset, 'dataset') else ())]
    if inner:
        return [folder for one in inner for folder in image_folders(one)]
    prefixes = getattr(dataset, 'data_prefix', None) or {}
    return [Path(prefixes[key]) for key in ('img', 'img_path') if prefixes.get(key)]


def path_in_dataset(path: str | Path, folders: Sequence[Path]) -> Path:
    """An image's path within the folder of images that holds it; without such a folder its own folder and name."""
    path = Path(path)
    for folder in folders:
        if path.is_relative_to(folder):
            inside = path.relative_to(folder)
            return inside if '..' not in inside.parts else Path(inside.name)
    return Path(path.parent.name, path.name)
