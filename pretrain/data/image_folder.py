"""Images for pre-training and classification: any folder, a tree of class folders, or a list of files.

A training config says ``dataset=dict(type='ImageFolderDataset', data_root=..., pipeline=[dict(type='SeedAugmentation'),
..., dict(type='PackImage')])`` with the transforms of :mod:`pretrain.data.transforms`, and
``sampler=dict(type='SeededInfiniteSampler')``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import Dataset

from addp_backbone.files.images import DECODING_ERRORS, read_image
from addp_backbone.runtime.bad_samples import MAX_ATTEMPTS, BadSamples, NoSampleError, describe
from addp_backbone.runtime.config_checks import LaunchError
from pretrain.data.image_list import PathTable, check_same_classes, find_images


@DATASETS.register_module()
class ImageFolderDataset(Dataset):
    """Images, decoded on access (in the worker processes), with or without labels.

    A training image that cannot be read is reported once, by name and reason, and replaced by the next readable one in
    the order of the data set, so that a resumed run sees the same images. Too many of them stop the run: in training
    after the running iteration, with a checkpoint (:mod:`addp_backbone.runtime.bad_samples`), otherwise on access.

    Args:
        data_root: Folder of the data.
        data_prefix: Folder within ``data_root`` that holds the images.
        ann_file: File that lists the images, relative to ``data_root`` (see
            :func:`pretrain.data.image_list.list_file`); '' searches the folder.
        labels: Whether images have classes, from the list or from the first level of folders. False takes every image
            at any depth.
        classes: Class names in the order of their labels, or a text file with one per line; None takes them from the
            data.
        pipeline: Transforms (configs or callables). They get ``img`` (PIL, RGB), ``img_path``, ``sample_idx`` and, with
            labels, ``gt_label`` (int).
        max_unreadable: Number of unreadable images that are replaced; one more stops the run.
        test_mode: Whether an unreadable image stops the run at once, because a measurement must not replace images.

    Raises:
        LaunchError: If there are no images or classes and data do not fit; on access, if too many images are
            unreadable, or one of a test set is.
    """

    def __init__(
        self,
        data_root: str,
        data_prefix: str = '',
        ann_file: str = '',
        labels: bool = False,
        classes: Sequence[str] | str | None = None,
        pipeline: Sequence[dict[str, Any] | Callable] = (),
        max_unreadable: int = 100,
        test_mode: bool = False,
    ) -> None:
        super().__init__()
        root = Path(data_root).expanduser()
        self.folder = root / data_prefix
        listed = find_images(root, data_prefix, ann_file, labels, classes)
        self.paths = PathTable(listed.paths)
        self.labels = listed.labels
        self.metainfo: dict[str, Any] = dict(classes=listed.classes)
        self.pipeline = Compose(list(pipeline))
        self.max_unreadable = max_unreadable
        self.test_mode = test_mode
        self.bad_samples = self._none_bad()
        print_log(
            f'{self.folder}: {len(self)} images'
            + (f' of {len(listed.classes)} classes' if listed.classes is not None else ''),
            logger='current',
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads an image, or the next readable one, and runs the pipeline.

        Raises:
            NoSampleError: If many images in a row cannot be read.
        """
        num_attempts = min(len(self), max(self.max_unreadable, MAX_ATTEMPTS) + 1)
        for offset in range(num_attempts):
            candidate = (int(index) + offset) % len(self)
            image = self._read(candidate)  # whatever it was before: a resumed run knows nothing of that
            if image is not None:
                results = dict(img=image, img_path=str(self.folder / self.paths[candidate]), sample_idx=index)
                if self.labels is not None:
                    results['gt_label'] = int(self.labels[candidate])
                return self.pipeline(results)
        self.bad_samples.give_up()
        raise NoSampleError(f'none of {num_attempts} images in a row of {self.folder} can be read')

    def _none_bad(self) -> BadSamples:
        setting = f'train_dataloader.dataset.max_unreadable={self.max_unreadable}'
        return BadSamples(len(self.paths), self.max_unreadable, setting)

    def _read(self, index: int) -> Image.Image | None:
        """Decodes an image; reports it and returns None if that fails."""
        path = self.folder / self.paths[index]
        try:
            return read_image(path)
        except DECODING_ERRORS as error:
            reason = describe(error)
            if self.test_mode:
                raise LaunchError(
                    f'{path} cannot be read ({reason}): a test set needs every image; repair or remove the file'
                ) from error
            if self.bad_samples.add(index, str(path), reason):
                self._report(path, reason, error)
            return None

    def _report(self, path: Path, reason: str, error: Exception) -> None:
        # As an error, because loggers of all processes show errors.
        print_log(
            f'{path} cannot be read ({reason}); the next image replaces it ({len(self.bad_samples)} unreadable so far, '
            f'at most {self.max_unreadable} are replaced)',
            logger='current',
            level=logging.ERROR,
        )
        if self.bad_samples.too_many and self.bad_samples.record is None:  # else LimitBadSamples ends the run
            raise LaunchError(
                f'{len(self.bad_samples)} of the {len(self)} images of {self.folder} cannot be read, the last {path} '
                f'({reason}); more than max_unreadable={self.max_unreadable}. Their names are in the log: repair or '
                'remove them, or raise train_dataloader.dataset.max_unreadable'
            ) from error


@HOOKS.register_module()
class CheckSameClasses(Hook):
    """Stops a run whose training and validation data have different classes."""

    def before_train(self, runner: Runner) -> None:
        """Compares the data sets' class names.

        Raises:
            LaunchError: If they differ.
        """
        if runner.val_loop is not None:
            check_same_classes(
                *(loader.dataset.metainfo['classes'] for loader in (runner.train_dataloader, runner.val_dataloader))
            )
