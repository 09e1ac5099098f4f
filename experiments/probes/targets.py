"""What the training patches of a data set should be, for one grid of patches; computed once and kept sparse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.probes.linear import label_points
from experiments.probes.patches import choose_patches, class_shares, to_targets
from experiments.probes.reading import read_labels

if TYPE_CHECKING:
    from experiments.probes.data import Pairs
    from experiments.probes.features import Features


class TrainingTargets:
    """Class shares of the patches of all training images, and their labels at points.

    Args:
        pairs: The training images with masks.
        void: How void is stored.
        num_classes: Number of classes.
        grid: (h, w) patches of an image.
        with_points: Whether :meth:`points` will be asked for.
        progress: Is told how many masks are read, and of how many.
    """

    def __init__(
        self,
        pairs: Pairs,
        void: str,
        num_classes: int,
        grid: tuple[int, int],
        with_points: bool,
        progress: Callable[[int, int], None],
    ) -> None:
        self.grid, self.num_classes = grid, num_classes
        self._entries: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        self._usable: list[NDArray[np.int64]] = []
        self._points: list[NDArray[np.uint8]] = []
        for number, mask in enumerate(pairs.masks, 1):
            labels = read_labels(mask, void, num_classes)
            targets, usable = to_targets(class_shares(labels, grid, num_classes))
            flat = targets.reshape(-1)
            where = np.flatnonzero(flat)
            self._entries.append((where, flat[where]))
            self._usable.append(np.flatnonzero(usable.reshape(-1)))
            if with_points:
                self._points.append(label_points(labels, grid))
            progress(number, len(pairs))

    def points(self, image: int) -> NDArray[np.uint8]:
        """Labels at points, see :func:`experiments.probes.linear.label_points`."""
        return self._points[image]

    def of(self, image: int) -> NDArray[np.float32]:
        """(h * w, C) targets of one image; rows of patches without labels are 0."""
        where, values = self._entries[image]
        flat = np.zeros(self.grid[0] * self.grid[1] * self.num_classes, np.float32)
        flat[where] = values
        return flat.reshape(-1, self.num_classes)

    def sample(
        self, features: Features, blocks: Sequence[int], images: Sequence[int], count: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Draws patches of some images, among those with enough labels.

        Args:
            features: Of the training images.
            blocks: Whose tokens, behind each other.
            images: Indices of the images.
            count: How many patches at most.
            seed: Of the draw.

        Returns:
            (n, channels) float32 tokens and (n, C) targets.

        Raises:
            ValueError: If no patch has labels.
        """
        ends = np.cumsum([len(self._usable[image]) for image in images])
        chosen = choose_patches(int(ends[-1]), count, seed)
        if not len(chosen):
            raise ValueError('no training patch is more than half labelled: the masks are void nearly everywhere')
        tokens, targets = [], []
        for image, end, part in zip(images, ends, np.split(chosen, np.searchsorted(chosen, ends[:-1])), strict=True):
            if len(part):
                usable = self._usable[image]
                rows = usable[part - (end - len(usable))]
                patches = features.map(image, blocks)
                tokens.append(patches.reshape(-1, patches.shape[-1])[rows])
                targets.append(self.of(image)[rows])
        return torch.from_numpy(np.concatenate(tokens)).float(), torch.from_numpy(np.concatenate(targets))
