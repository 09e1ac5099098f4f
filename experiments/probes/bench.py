"""Makes the rows of one backbone: fits a probe to features and targets, and scores it on the validation images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from addp_backbone.files.mask_areas import count_areas
from experiments.probes.linear import fit_linear
from experiments.probes.logistic import fit_logistic
from experiments.probes.patches import choose_images
from experiments.probes.reading import read_labels
from experiments.probes.results import Row
from experiments.probes.retrieval import PatchMemory
from experiments.probes.scores import upsampled_classes
from experiments.probes.settings import KNN, LINEAR, LOGISTIC, ProbeSettings, block_label

if TYPE_CHECKING:
    from experiments.probes.backbones import Source
    from experiments.probes.data import ProbeData
    from experiments.probes.features import Features
    from experiments.probes.targets import TrainingTargets

NOT_CONVERGED = 'L-BFGS stopped before it converged'
_KEPT_BYTES = 1 << 28  # of labels


@dataclass(frozen=True)
class Job:
    """A row that is to be made.

    Attributes:
        source: The backbone.
        digest: Of the backbone and its weights.
        blocks: Whose tokens are put together.
        protocol: Which one.
        fraction: Of the training images.
        seed: Of their choice.
        path: The row's file.
    """

    source: Source
    digest: str
    blocks: tuple[int, ...]
    protocol: str
    fraction: float
    seed: int
    path: Path

    def __str__(self) -> str:
        return (
            f'{self.source.text} block {block_label(self.blocks)} {self.protocol}, {self.fraction:.0%} of the labels, '
            f'seed {self.seed}'
        )


class Bench:
    """Features and targets of one backbone; makes its rows.

    Args:
        settings: The numbers of the protocols.
        data: The data set.
        train: Features of the training images.
        val: Features of the validation images.
        targets: Of the training images.
    """

    def __init__(
        self, settings: ProbeSettings, data: ProbeData, train: Features, val: Features, targets: TrainingTargets
    ) -> None:
        self.settings, self.data, self.targets = settings, data, targets
        self.train, self.val = train, val
        self.device = settings.device
        self.num_classes = len(data.classes)
        self._val_labels: dict[int, NDArray[np.uint8]] = {}

    def row(self, job: Job) -> Row:
        """Fits one probe and scores it."""
        started = time.monotonic()
        images = choose_images(len(self.data.train), job.fraction, job.seed)
        logits_of, note = self._fit(job, images)
        areas = np.stack([self._areas(image, job.blocks, logits_of) for image in range(len(self.data.val))])
        return Row(
            job.source.text,
            job.protocol,
            block_label(job.blocks),
            job.fraction,
            job.seed,
            len(images),
            time.monotonic() - started,
            note,
            areas,
        )

    def _fit(self, job: Job, images: NDArray[np.int64]) -> tuple[Callable[[Tensor], Tensor], str]:
        if job.protocol == LINEAR:
            labels = [self.targets.points(image) for image in images]

            def tokens_of(index: int) -> Tensor:
                return self._tokens(self.train, int(images[index]), job.blocks)

            return fit_linear(tokens_of, labels, self.num_classes, job.seed, self.settings.linear_iters), ''
        count = self.settings.memory_size if job.protocol == KNN else self.settings.num_patches
        sample = self.targets.sample(self.train, job.blocks, images.tolist(), count, job.seed)
        tokens, targets = (part.to(self.device) for part in sample)
        if job.protocol == KNN:
            return PatchMemory(tokens, targets), ''
        assert job.protocol == LOGISTIC
        linear, converged = fit_logistic(tokens, targets, self.settings.l2)
        return linear, '' if converged else NOT_CONVERGED

    def _tokens(self, features: Features, image: int, blocks: Sequence[int]) -> Tensor:
        return torch.from_numpy(features.map(image, blocks).astype(np.float32)).to(self.device)

    @torch.inference_mode()
    def _areas(self, image: int, blocks: Sequence[int], logits_of: Callable[[Tensor], Tensor]) -> NDArray[np.int64]:
        labels = self._labels(image)
        logits = logits_of(self._tokens(self.val, image, blocks)).permute(2, 0, 1)
        return count_areas(upsampled_classes(logits, (labels.shape[0], labels.shape[1])), labels, self.num_classes)

    def _labels(self, image: int) -> NDArray[np.uint8]:
        """Labels of a validation image, kept for the next rows while there are not too many."""
        labels = self._val_labels.get(image)
        if labels is None:
            labels = read_labels(self.data.val.masks[image], self.data.void, self.num_classes)
            if sum(kept.nbytes for kept in self._val_labels.values()) + labels.nbytes <= _KEPT_BYTES:
                self._val_labels[image] = labels
        return labels
