"""The segmentation data of a probe: pairs of image and mask, checked before any work, thinned, and read as labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from addp_backbone.datasets.findings import Findings, Progress
from addp_backbone.datasets.masks import SegmentationSplit, check_segmentation, read_classes, sample_pairs
from addp_backbone.files.atomic import sha256_of
from addp_backbone.files.images import inspect_image

MAX_OWN_SIDE_PX = 640  # images of one size up to this keep it
DEFAULT_SIZE = (448, 448)  # else; a multiple of 8, 14, 16 and 32
_MAX_FINDINGS = 5


@dataclass(frozen=True)
class Pairs:
    """The images of a split with their masks, in the order of their names.

    Attributes:
        name: 'train' or 'val'.
        images: Image files.
        masks: Mask files, in the order of ``images``.
    """

    name: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    def every(self, stride: int) -> Pairs:
        """The first pair, the one ``stride`` after it, and so on."""
        return Pairs(self.name, self.images[::stride], self.masks[::stride])

    def digest(self) -> str:
        """SHA-256 of the contents of the images in their order; 64 hexadecimal digits. Names do not count."""
        joined = ''.join(sha256_of(path) for path in self.images)
        return hashlib.sha256(joined.encode()).hexdigest()

    def labels_digest(self) -> str:
        """Likewise, of the masks."""
        joined = ''.join(sha256_of(path) for path in self.masks)
        return hashlib.sha256(joined.encode()).hexdigest()


@dataclass(frozen=True)
class ProbeData:
    """A data set as probes take it.

    Attributes:
        train: What a probe is fitted to.
        val: What it is scored on.
        classes: Class names.
        void: How void is stored in the masks, one of the constants of :mod:`addp_backbone.datasets.mask_values`.
        warnings: What the check found unusual, as lines.
    """

    train: Pairs
    val: Pairs
    classes: tuple[str, ...]
    void: str
    warnings: tuple[str, ...] = ()


def read_data(
    splits: Sequence[SegmentationSplit],
    classes_file: Path,
    void: str = 'auto',
    mask_suffix: str = '.png',
    strides: tuple[int, int] = (1, 1),
    num_workers: int = 1,
    progress: Progress | None = None,
) -> ProbeData:
    """Checks a data set completely and lists its pairs.

    Args:
        splits: Training and validation.
        classes_file: Class names, as :func:`addp_backbone.datasets.masks.read_classes` takes them.
        void: 'auto', 'zero' or '255', as in ``tools/new_dataset.py``.
        mask_suffix: How the names of masks end.
        strides: Every how many-th pair of training and of validation is used.
        num_workers: Threads that decode.
        progress: Wraps an iterable (second argument: its length).

    Returns:
        The data.

    Raises:
        ValueError: If a file is missing or unreadable, image and mask differ in size, a mask has values of no class, or
            the convention of void cannot be told; lists what was found.
    """
    classes, _ = read_classes(classes_file)
    findings = Findings()
    found = check_segmentation(list(splits), classes, findings, void, mask_suffix, num_workers, progress)
    lines = findings.lines(_MAX_FINDINGS)
    if findings.num_errors:
        raise ValueError(
            f'the data have {findings.num_errors} errors, so that nothing is probed '
            '(python tools/new_dataset.py seg ... lists all, and converts masks):\n' + '\n'.join(lines)
        )
    pairs = []
    for split, stride in zip(splits, strides, strict=True):
        every = sample_pairs(split, found, sum(1 for _ in split.image_dir.rglob(f'*{found.img_suffix}')))
        images, masks = zip(*every, strict=True)
        pairs.append(Pairs(split.name, images, masks).every(stride))
    return ProbeData(pairs[0], pairs[1], tuple(classes), found.void, tuple(lines))


def common_size(data: ProbeData) -> tuple[int, int]:
    """The size that images are resized to where none is asked for.

    Returns:
        (width, height) in pixels: that of the images if all have the same and no side is longer than
        :data:`MAX_OWN_SIDE_PX`, else :data:`DEFAULT_SIZE`.
    """
    sizes = set()
    for path in (*data.train.images, *data.val.images):
        info = inspect_image(path)
        sizes.add((info.width, info.height))
        if len(sizes) > 1:
            return DEFAULT_SIZE
    size = sizes.pop()
    return size if max(size) <= MAX_OWN_SIDE_PX else DEFAULT_SIZE
