"""Features of frozen backbones: computed once, kept in memory-mapped files, shared by the runs that need the same.

A folder of the cache belongs to one backbone, image size, precision and set of images. In it stand, for each block,
files of a few images each (tokens normalised as :func:`normalised` says, float16). A file is whole or not there, so
that a cut run goes on, and runs side by side each take the files that no other is making.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone.files.atomic import remove_abandoned_parts, replace_file
from experiments.probes.reading import read_resized

if TYPE_CHECKING:
    from experiments.probes.data import Pairs

IMAGES_PER_FILE = 8
GB = 10**9
_IN_USE = 1 << 40  # the byte of a lock file that every user of a folder holds shared; lower ones are its files
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class FeatureKey:
    """What features depend on.

    Attributes:
        backbone: Digest of the backbone and its weights.
        images: Digest of the images.
        size: (width, height) that images are resized to, in pixels.
        precision: 'fp32' or 'bf16', as the backbone is computed.
    """

    backbone: str
    images: str
    size: tuple[int, int]
    precision: str

    @property
    def name(self) -> str:
        """Name of the folder."""
        text = json.dumps([self.backbone, self.images, self.size, self.precision, IMAGES_PER_FILE, 'layernorm fp16'])
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Features:
    """Features of one set of images on disk.

    Attributes:
        folder: Of the cache.
        num_images: How many images.
    """

    folder: Path
    num_images: int

    def map(self, image: int, blocks: Sequence[int]) -> NDArray[np.float16]:
        """The tokens of one image: (h, w, channels), those of several blocks behind each other."""
        number, place = divmod(image, IMAGES_PER_FILE)
        parts = [np.load(feature_file(self.folder, block, number), mmap_mode='r')[place] for block in blocks]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def feature_file(folder: Path, block: int, number: int) -> Path:
    """The file of some images: (n, h, w, channels) float16."""
    return folder / f'block{block:02}' / f'{number:05}.npy'


def is_whole(path: Path) -> bool:
    """Whether a file of features is there and as long as its header says; one that was cut is made again."""
    try:
        np.load(path, mmap_mode='r')
    except (OSError, EOFError, ValueError):
        return False
    return True


def normalised(maps: Tensor) -> Tensor:
    """Tokens as probes take them: each with mean 0 and deviation 1 over its channels (LayerNorm without weights).

    The scale and shift of a backbone's own final norm, which is not built, would be absorbed by the standardisation or
    BatchNorm that follows in every linear probe.

    Args:
        maps: (B, channels, h, w).

    Returns:
        (B, h, w, channels) float16.

    Raises:
        ValueError: If a value is not finite.
    """
    tokens = maps.permute(0, 2, 3, 1).float()
    tokens = F.layer_norm(tokens, tokens.shape[-1:])
    if not torch.isfinite(tokens).all():
        raise ValueError('the backbone gives values that are not finite: its weights or the precision are at fault')
    return tokens.half()


class FeatureCache:
    """A folder of bounded size with features.

    Args:
        root: The folder.
        max_bytes: The sets of features that were not used for longest go when a new one would exceed it; never those in
            use by this or another run.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root, self.max_bytes = root, max_bytes
        self._held: set[Path] = set()

    @contextmanager
    def hold(self, key: FeatureKey) -> Iterator[_Folder]:
        """Keeps a folder from being removed, by other runs too, until the context is left."""
        folder = self.root / key.name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / '.lock').open('a+b') as file:
            fcntl.lockf(file, fcntl.LOCK_SH, 1, _IN_USE)
            folder.mkdir(exist_ok=True)
            replace_file(folder / 'about.json', json.dumps(key.__dict__) + '\n')
            remove_abandoned_parts(folder)
            self._held.add(folder)
            try:
                yield _Folder(folder, file.fileno())
            finally:
                self._held.discard(folder)

    def make_room(self, wanted_bytes: int) -> None:
        """Removes what was not used for longest until ``wanted_bytes`` more fit.

        Raises:
            ValueError: If they cannot fit.
        """
        sizes = {path.parent: _folder_bytes(path.parent) for path in self.root.glob('*/about.json')}
        held = sum(size for folder, size in sizes.items() if folder in self._held)
        if held + wanted_bytes > self.max_bytes:
            raise ValueError(
                f'the features take {(held + wanted_bytes) / GB:.2f} GB, the cache {self.root} may hold '
                f'{self.max_bytes / GB:.2f} GB: ask for fewer blocks or images, or raise --cache-gb'
            )
        total = sum(sizes.values())
        for folder in sorted(sizes, key=lambda folder: (folder / 'about.json').stat().st_mtime):
            if total + wanted_bytes <= self.max_bytes:
                break
            if folder not in self._held and _remove_unused(folder):
                total -= sizes[folder]
        free = shutil.disk_usage(self.root).free
        if wanted_bytes > free:
            raise ValueError(
                f'{self.root} has {free / GB:.2f} GB left, the features take {wanted_bytes / GB:.2f} GB: '
                'free some, ask for fewer blocks, or give another --cache'
            )


@dataclass(frozen=True)
class _Folder:
    """A folder of the cache that is held, with the descriptor of its lock file."""

    path: Path
    lock: int

    def try_claim(self, number: int) -> bool:
        """Takes a file number for this process, unless another has it."""
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        return True

    def release(self, number: int) -> None:
        """Gives a file number back."""
        fcntl.lockf(self.lock, fcntl.LOCK_UN, 1, number)


def missing_bytes(folder: Path, num_images: int, blocks: Sequence[int], grid: tuple[int, int], width: int) -> int:
    """How many bytes of features are not there yet."""
    per_file = IMAGES_PER_FILE * grid[0] * grid[1] * width * 2
    return sum(
        per_file
        for number in range(-(-num_images // IMAGES_PER_FILE))
        for block in blocks
        if not is_whole(feature_file(folder, block, number))
    )


@dataclass(frozen=True)
class Extraction:
    """How features are computed.

    Attributes:
        make_backbone: Builds the backbone when something has to be computed: blocks -> module.
        blocks: Blocks whose maps are kept, ascending, from 1.
        mean: Of R, G and B, in [0, 255].
        std: Likewise.
        size: (width, height) of the images in pixels.
        precision: 'fp32' or 'bf16' (autocast).
        device: Where to compute.
    """

    make_backbone: Callable[[tuple[int, ...]], nn.Module]
    blocks: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    precision: str
    device: str

    def run(self, folder: _Folder, pairs: Pairs, progress: Callable[[int, int], None]) -> Features:
        """Computes what is missing; files that another process is making are waited for at the end.

        Args:
            folder: Held folder of the cache.
            pairs: Whose images to take.
            progress: Is told how many images are done, and of how many, after every file.

        Returns:
            The features, complete.
        """
        todo = list(range(-(-len(pairs) // IMAGES_PER_FILE)))
        done = 0
        backbone = None
        while todo:
            left = []
            for number in todo:
                images = pairs.images[number * IMAGES_PER_FILE : (number + 1) * IMAGES_PER_FILE]
                if not self._is_there(folder.path, number):
                    if not folder.try_claim(number):
                        left.append(number)
                        continue
                    try:
                        if not self._is_there(folder.path, number):  # another process may have ended meanwhile
                            backbone = backbone or self.make_backbone(self.blocks).to(self.device)
                            self._write(folder.path, number, self.compute(backbone, images))
                    finally:
                        folder.release(number)
                done += len(images)
                progress(done, len(pairs))
            if left:
                time.sleep(_POLL_SECONDS)
            todo = left
        return Features(folder.path, len(pairs))

    def _is_there(self, folder: Path, number: int) -> bool:
        return all(is_whole(feature_file(folder, block, number)) for block in self.blocks)

    @torch.inference_mode()
    def compute(self, backbone: nn.Module, images: Sequence[Path]) -> list[Tensor]:
        """Reads some images and computes their tokens.

        Args:
            backbone: From ``make_backbone``, on the device.
            images: The files.

        Returns:
            (n, h, w, channels) float16 for each block.

        Raises:
            ValueError: If a value is not finite.
        """
        batch = self.read(images)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.precision == 'bf16'):
            maps = backbone(batch)
        return [normalised(one) for one in maps[: len(self.blocks)]]

    def read(self, images: Sequence[Path]) -> Tensor:
        """Reads, resizes and normalises images: (n, 3, height, width) on the device."""
        pixels = np.stack([read_resized(path, self.size) for path in images])
        batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(values, device=batch.device)[:, None, None] for values in (self.mean, self.std))
        return (batch - mean) / std

    def _write(self, folder: Path, number: int, tokens: Sequence[Tensor]) -> None:
        for block, one in zip(self.blocks, tokens, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, one.cpu().numpy())
            replace_file(feature_file(folder, block, number), buffer.getvalue())


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob('*'):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # removed or renamed by another run meanwhile
            continue
    return total


def _remove_unused(folder: Path) -> bool:
    """Removes a folder unless another process holds it."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context((folder / '.lock').open('a+b'))
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _IN_USE)
        except OSError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
    return True
