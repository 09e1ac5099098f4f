"""What classification needs of its data beyond :mod:`pretrain.data.image_folder`: few-shot subsets, RandAugment, random erasing, mixup and cutmix.

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
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_pil_interp
from torch import Tensor

from addp_backbone.files.images import PIXEL_MEAN, PIXEL_STD
from addp_backbone.runtime.config_checks import LaunchError
from pretrain.data.image_folder import ImageFolderDataset
from pretrain.data.image_list import PathTable, check_same_classes, list_class_folders, list_file, read_classes
from pretrain.data.transforms import ImageSample

TRANSLATE_SHARE = 0.45  # of the image's side: RandAugment's largest shift (timm)


@DATASETS.register_module()
class ClassificationDataset(ImageFolderDataset):
    """Labelled images, all of them or a random few of each class.

    Args:
        images_per_class: Number of images a class (few-shot); None takes all.
        subset_seed: Which few.
        data_root: This and the others: see :class:`pretrain.data.image_folder.ImageFolderDataset`.

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
        self._unreadable = self._unreadable[: len(chosen)].clone().share_memory_()
        print_log(
            f'few-shot: {images_per_class} images of each class, {len(chosen)} in all (subset_seed={subset_seed})',
            logger='current',
        )


def choose_few(labels: np.ndarray, classes: Sequence[str], images_per_class: int, seed: int) -> np.ndarray:
    """Draws images of each class without repetition.

    Args:
        labels: (N,) int64.
        classes: Names in the order of the labels.
        images_per_class: How many of each; at least 1.
        seed: Not negative.

    Returns:
        Ascending indices into ``labels``.

    Raises:
        LaunchError: If a class has fewer images, or the number is below 1.
    """
    counts = np.bincount(labels, minlength=len(classes))
    short = [f'{name} has {count}' for name, count in zip(classes, counts, strict=True) if count < images_per_class]
    if images_per_class < 1 or short:
        raise LaunchError(
            f'images_per_class={images_per_class}: wanted at least 1 and at most what the smallest class has'
            + (f'; {", ".join(short[:5])}' if short else '')
        )
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:images_per_class] for label in range(len(classes))]
    return np.sort(np.concatenate(drawn))


@TRANSFORMS.register_module()
class RandAugmentImage:
    """timm's RandAugment.

    Args:
        policy: timm's notation; 'rand-m9-mstd0.5-inc1' = magnitude 9 with deviation 0.5, two operations, all growing in
            strength.
        interpolation: 'bilinear' or 'bicubic', for rotations and the like.
    """

    def __init__(self, policy: str = 'rand-m9-mstd0.5-inc1', interpolation: str = 'bicubic') -> None:
        self.policy = policy
        self.options = dict(
            img_mean=tuple(round(value) for value in PIXEL_MEAN), interpolation=str_to_pil_interp(interpolation)
        )
        self._augment = self._build(translate_px=1)  # refuses a wrong policy now
        self._side = 0

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replaces ``img`` (PIL)."""
        side = min(results['img'].size)
        if side != self._side:
            self._augment = self._build(translate_px=int(side * TRANSLATE_SHARE))
            self._side = side
        results['img'] = self._augment(results['img'])
        return results

    def _build(self, translate_px: int) -> RandAugment:
        augment = rand_augment_transform(self.policy, {**self.options, 'translate_const': translate_px})
        for operation in augment.ops:
            if operation.aug_fn is timm_posterize:
                operation.aug_fn = posterize
        return augment

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.policy!r})'


def posterize(image: Image.Image, bits_to_keep: int, **unused: Any) -> Image.Image:
    """Keeps the highest bits of every channel, as timm's operation of this name does, down to none.

    At its full strength timm asks Pillow for 0 bits. Pillow made a black image of that until it began to refuse it.

    Args:
        image: An 8-bit image.
        bits_to_keep: From 0 (a black image); 8 or more change nothing.
        unused: timm passes the options of geometric operations to every operation.
    """
    if bits_to_keep == 0:
        return Image.new(image.mode, image.size)
    return timm_posterize(image, bits_to_keep)


@MODELS.register_module()
class ClassificationPreprocessor(ImgDataPreprocessor):
    """Stacks and normalises images; in training erases rectangles and mixes pairs, as timm does.

    Args:
        erasing_prob: Probability that a rectangle of an image is replaced by noise.
        mixup: Alpha of mixup's beta distribution; 0 for none.
        cutmix: The same for cutmix. With both, a batch has the one or the other, by even chance.
        mean: Per channel (RGB), for pixels in [0, 255].
        std: Likewise.
    """

    def __init__(
        self,
        erasing_prob: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mean: Sequence[float] = PIXEL_MEAN,
        std: Sequence[float] = PIXEL_STD,
    ) -> None:
        super().__init__(mean=list(mean), std=list(std))
        if not 0 <= erasing_prob <= 1 or min(mixup, cutmix) < 0:
            raise ValueError(
                f'erasing_prob lies in [0, 1] and mixup and cutmix are not negative, got {erasing_prob}, {mixup}, {cutmix}'
            )
        self.erasing_prob = erasing_prob
        self.alphas = dict(mixup_alpha=mixup, cutmix_alpha=cutmix)
        self.num_classes: int | None = None  # the classifier sets it

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Prepares a batch.

        Args:
            data: ``inputs``, a list of (3, H, W) uint8, and ``data_samples``, a list of :class:`ImageSample`.
            training: Whether to augment.

        Returns:
            ``inputs`` (B, 3, H, W) float32; ``data_samples``, after mixing with ``gt_scores`` (K,), the shares of the
            classes.

        Raises:
            ValueError: If an odd number of images shall be mixed, which is done in pairs.
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
                f'mixup and cutmix mix pairs, so train_dataloader.batch_size must be even, got {len(images)}; or set mixup and '
                'cutmix of model.data_preprocessor to 0'
            )
        assert self.num_classes is not None
        # Labels are smoothed in the loss, which comes to the same.
        mix = Mixup(**self.alphas, label_smoothing=0.0, num_classes=self.num_classes)
        return mix(images, torch.cat([sample.gt_label for sample in samples]).to(images.device))


def class_names(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of a data set, from its config; looks at names of folders, not at images, unless there is a list.

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
    """Fills in ``model.num_classes`` from the training data where a classification config leaves it open; changes ``cfg``.

    Where the checkpoint to be tested is, the training data need not be: then the test data tells.

    Raises:
        LaunchError: If training and validation data have different classes, or other numbers of them than the config
            says.
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
                f'{", ".join(names[:10])}{" ..." if len(names) > 10 else ""}. Set model.num_classes=None to take it from the data'
            )


def _is_there(dataset: Mapping[str, Any]) -> bool:
    root = Path(dataset.get('data_root', '')).expanduser()
    return (root / (dataset.get('ann_file') or dataset.get('data_prefix', ''))).exists()
