"""Data of classification: few-shot subsets, random erasing, mixup and cutmix, and the classes of a config's data.

Random draws come from ``random``, numpy's and torch's global generators; ``SeedAugmentation`` seeds them for each
sample and ``SeedEachIteration`` for each batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, MODELS
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from addp_backbone.files.images import PIXEL_MEAN, PIXEL_STD
from addp_backbone.layers.transfer import to_device
from addp_backbone.runtime.config_checks import LaunchError
from pretrain.data.batches import ImageBatchPreprocessor
from pretrain.data.image_folder import ImageFolderDataset
from pretrain.data.image_list import PathTable, check_same_classes, list_class_folders, list_file, read_classes
from pretrain.data.transforms import ImageSample


@DATASETS.register_module()
class ClassificationDataset(ImageFolderDataset):
    """Labelled images, all of them or a few random ones per class.

    Args:
        data_root: Folder of the data.
        data_prefix: As in :class:`pretrain.data.image_folder.ImageFolderDataset`, and so are the next five arguments.
        ann_file: File that lists images and labels; '' takes the first level of folders as classes.
        classes: Class names in the order of their labels, or a text file with one per line.
        pipeline: Transforms (configs or callables).
        max_unreadable: Number of unreadable images that are replaced.
        test_mode: Whether an unreadable image stops the run at once.
        images_per_class: Number of images per class (few-shot); None takes all.
        subset_seed: Seed of the draw of these images.

    Raises:
        LaunchError: If a class has fewer images.
    """

    def __init__(
        self,
        data_root: str,
        data_prefix: str = '',
        ann_file: str = '',
        classes: Sequence[str] | str | None = None,
        pipeline: Sequence[Any] = (),
        max_unreadable: int = 100,
        test_mode: bool = False,
        images_per_class: int | None = None,
        subset_seed: int = 0,
    ) -> None:
        super().__init__(data_root, data_prefix, ann_file, True, classes, pipeline, max_unreadable, test_mode)
        if images_per_class is None:
            return
        assert self.labels is not None
        chosen = choose_few(self.labels, self.metainfo['classes'], images_per_class, subset_seed)
        self.paths = PathTable([self.paths[i] for i in chosen])
        self.labels = self.labels[chosen]
        self.bad_samples = self._none_bad()
        print_log(
            f'few-shot: {images_per_class} images of each class, {len(chosen)} in all (subset_seed={subset_seed})',
            logger='current',
        )


def choose_few(labels: np.ndarray, classes: Sequence[str], images_per_class: int, seed: int) -> np.ndarray:
    """Draws images of each class without repetition.

    Args:
        labels: (N,) int64.
        classes: Names in the order of the labels.
        images_per_class: Number of images of each class, at least 1.
        seed: Seed of the draw, not negative.

    Returns:
        Ascending indices into ``labels``.

    Raises:
        LaunchError: If a class has fewer images, or the number is below 1.
    """
    counts = np.bincount(labels, minlength=len(classes))
    short = [f'{name} has {count}' for name, count in zip(classes, counts, strict=True) if count < images_per_class]
    if images_per_class < 1 or short:
        raise LaunchError(
            f'images_per_class={images_per_class}: wanted at least 1 and at most as many as the smallest class has'
            + (f'; {", ".join(short[:5])}' if short else '')
        )
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:images_per_class] for label in range(len(classes))]
    return np.sort(np.concatenate(drawn))


@MODELS.register_module()
class ClassificationPreprocessor(ImageBatchPreprocessor):
    """Stacks and normalises images; in training also erases rectangles and mixes pairs, as timm does.

    Args:
        erasing_prob: Probability that a rectangle of an image is replaced by noise.
        mixup: Alpha of the beta distribution of mixup; 0 switches it off.
        cutmix: Alpha of the beta distribution of cutmix; 0 switches it off. With both, each batch gets one of them with
            equal probability.
        mean: Mean of each channel (RGB), for pixels in [0, 255].
        std: Standard deviation of each channel, for pixels in [0, 255].

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        erasing_prob: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mean: Sequence[float] = PIXEL_MEAN,
        std: Sequence[float] = PIXEL_STD,
    ) -> None:
        super().__init__(mean, std)
        if not 0 <= erasing_prob <= 1 or min(mixup, cutmix) < 0:
            raise ValueError(
                'erasing_prob must lie in [0, 1], mixup and cutmix must not be negative, '
                f'got {erasing_prob}, {mixup} and {cutmix}'
            )
        self.erasing_prob = erasing_prob
        self.alphas = dict(mixup_alpha=mixup, cutmix_alpha=cutmix)
        self.num_classes: int | None = None  # the classifier sets it

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Prepares a batch.

        Args:
            data: ``inputs``, (B, 3, H, W) or a list of (3, H, W) uint8, and ``data_samples``, a list of
                :class:`ImageSample`.
            training: Whether to erase and mix.

        Returns:
            A dict of ``inputs`` (B, 3, H, W) float32 and ``data_samples``; these have ``gt_scores`` (K,), the shares of
            the classes, if images were mixed.

        Raises:
            ValueError: If the number of images to mix is odd, because they are mixed in pairs.
        """
        batch: dict[str, Any] = super().forward(data, training)
        if training and self.erasing_prob:
            erase = RandomErasing(self.erasing_prob, mode='pixel', device=batch['inputs'].device.type)
            batch['inputs'] = erase(batch['inputs'])
        if training and any(self.alphas.values()):
            batch['inputs'], scores = self._mix(batch['inputs'], batch['data_samples'])
            for sample, row in zip(batch['data_samples'], scores, strict=True):
                sample.set_field(row, 'gt_scores')
        return batch

    def _mix(self, images: Tensor, samples: list[ImageSample]) -> tuple[Tensor, Tensor]:
        if len(images) % 2:
            raise ValueError(
                f'mixup and cutmix mix pairs, so train_dataloader.batch_size must be even, got {len(images)}; or set '
                'mixup and cutmix of model.data_preprocessor to 0'
            )
        assert self.num_classes is not None
        # The loss smooths labels, which is equivalent.
        mix = Mixup(**self.alphas, label_smoothing=0.0, num_classes=self.num_classes)
        (labels,) = to_device(images.device, torch.cat([sample.gt_label for sample in samples]))
        return mix(images, labels)


def class_names(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the classes of a data set from its config, without reading images.

    Args:
        dataset: Config of a :class:`ClassificationDataset`.

    Raises:
        LaunchError: If there are none, or the data is not there.
    """
    root = Path(dataset.get('data_root', '')).expanduser()
    names = read_classes(dataset.get('classes'), root)
    if names is not None:
        return names
    if dataset.get('ann_file'):
        return list_file(root / dataset['ann_file'], with_labels=True).classes or ()
    return list_class_folders(root / dataset.get('data_prefix', '')).classes or ()


def settle_classes(cfg: Config) -> None:
    """Fills in ``model.num_classes=None`` of a classification config from the training data; changes ``cfg``.

    If the training data is missing, as it may be where a checkpoint is tested, the validation or test data decides.

    Raises:
        LaunchError: If training and validation data have different classes, or not as many as the config says.
    """
    if cfg.model.get('type') != 'ImageClassifier':
        return
    datasets = {
        split: cfg[f'{split}_dataloader'].dataset
        for split in ('train', 'val', 'test')
        if cfg.get(f'{split}_dataloader')
    }
    found = {split: class_names(dataset) for split, dataset in datasets.items() if _is_there(dataset)}
    for names in list(found.values())[1:]:
        check_same_classes(next(iter(found.values())), names)
    for split, names in found.items():
        if cfg.model.num_classes is None:
            cfg.model.num_classes = len(names)
            print_log(
                f'{len(names)} classes in the {split} data: {", ".join(names[:10])}{" ..." if len(names) > 10 else ""}',
                logger='current',
            )
        if cfg.model.num_classes != len(names):
            raise LaunchError(
                f'model.num_classes={cfg.model.num_classes}, but the {split} data has {len(names)} classes: '
                f'{", ".join(names[:10])}{" ..." if len(names) > 10 else ""}. Set model.num_classes=None to take it '
                'from the data'
            )


def _is_there(dataset: Mapping[str, Any]) -> bool:
    root = Path(dataset.get('data_root', '')).expanduser()
    return (root / (dataset.get('ann_file') or dataset.get('data_prefix', ''))).exists()
