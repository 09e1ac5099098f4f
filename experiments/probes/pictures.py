"""Pictures of features: principal components of patches as colours, and how similar all patches are to a chosen one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from addp_backbone.files.images import encode_png, write_png
from experiments.probes.reading import read_resized

if TYPE_CHECKING:
    from experiments.probes.data import Pairs
    from experiments.probes.features import Features

NUM_IMAGES, MAX_BLOCKS = 3, 3
KINDS = PCA, SIMILARITY = 'pca', 'similarity'
ATTENTION = 'attention'
PICTURES_FOLDER = 'pictures'
_PHOTO_PX = 320
_PERCENTILES = (2, 98)  # of a component's values that become 0 and 255


def principal_colours(maps: Sequence[NDArray[np.floating]]) -> list[NDArray[np.uint8]]:
    """The first three principal components of the tokens of several images as red, green and blue.

    All images share mean, basis and scale, so that a colour means the same in each.

    Args:
        maps: Tokens, each (h, w, channels).

    Returns:
        (h, w, 3) for each.
    """
    tokens = np.concatenate([one.reshape(-1, one.shape[-1]) for one in maps]).astype(np.float64)
    mean = tokens.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(tokens, rowvar=False))
    basis = vectors[:, ::-1][:, :3]
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), range(basis.shape[1])])  # eigenvectors have no sign
    low, high = np.percentile((tokens - mean) @ basis, _PERCENTILES, axis=0)
    colours = []
    for one in maps:
        scaled = ((one.astype(np.float64) - mean) @ basis - low) / np.maximum(high - low, 1e-12)
        colours.append((scaled.clip(0, 1) * 255).round().astype(np.uint8))
    return colours


def cosine_map(tokens: NDArray[np.floating], row: int, column: int) -> NDArray[np.float64]:
    """Cosine similarity of every patch with one of them; (h, w, channels) -> (h, w) in [-1, 1]."""
    unit = tokens.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=-1, keepdims=True), 1e-12)
    return unit @ unit[row, column]


def similarity_colours(similarity: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Viridis colours from the least similar patch (dark) to the chosen one (yellow); (h, w) -> (h, w, 3)."""
    low = similarity.min()
    return viridis((similarity - low) / max(1 - low, 1e-12))


def viridis(shares: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Viridis colours of values from 0 (dark) to 1 (yellow); (h, w) -> (h, w, 3)."""
    scaled = (shares.clip(0, 1) * 255).round().astype(np.uint8)
    return np.asarray(cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS)[..., ::-1], np.uint8)


@dataclass(frozen=True)
class Gallery:
    """Pictures of one backbone, each a PNG with a pixel for every patch.

    Attributes:
        backbone: Its name.
        pca: Block -> pictures, one for each shown image.
        similarity: Likewise.
        attention: Of the class token in the last block; empty if there is none.
    """

    backbone: str
    pca: Mapping[int, Sequence[Path]]
    similarity: Mapping[int, Sequence[Path]]
    attention: Sequence[Path] = ()


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run: of which images, around which patch, and where they are kept.

    Attributes:
        pairs: The validation images.
        patch: (x, y) of the chosen patch, as shares of width and height in [0, 1).
        folder: Where the files are.
    """

    pairs: Pairs
    patch: tuple[float, float]
    folder: Path

    @property
    def images(self) -> list[int]:
        """Indices of the images that are shown, spread evenly."""
        count = min(NUM_IMAGES, len(self.pairs))
        return [len(self.pairs) * index // count for index in range(count)]

    def photographs(self) -> list[bytes]:
        """The shown images as PNG, with a ring around the chosen patch."""
        found = []
        for index in self.images:
            photo = Image.fromarray(read_resized(self.pairs.images[index], self._shown_size(index)))
            x, y = (share * side for share, side in zip(self.patch, photo.size, strict=True))
            draw = ImageDraw.Draw(photo)
            for radius, colour in ((7, 'black'), (6, 'white'), (5, 'white'), (4, 'black')):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour)
            found.append(encode_png(photo))
        return found

    def files(self, kind: str, key: str, block: int) -> list[Path]:
        """Files of one of :data:`KINDS`, of features with a key, at a block."""
        x, y = self.patch
        place = f'_{x:.3f}_{y:.3f}' if kind == SIMILARITY else ''
        return [self.folder / f'{key}_block{block:02}_{kind}{place}_{index}.png' for index in self.images]

    def is_drawn(self, key: str, blocks: Sequence[int]) -> bool:
        """Whether all pictures of some blocks are there."""
        return all(path.is_file() for block in blocks for kind in KINDS for path in self.files(kind, key, block))

    def draw(self, features: Features, key: str, blocks: Sequence[int]) -> None:
        """Writes the pictures of some blocks, one pixel a patch, unless they are there."""
        if self.is_drawn(key, blocks):
            return
        for block in blocks:
            maps = [features.map(index, (block,)) for index in self.images]
            for path, colours in zip(self.files(PCA, key, block), principal_colours(maps), strict=True):
                write_png(colours, path)
            for path, tokens in zip(self.files(SIMILARITY, key, block), maps, strict=True):
                column, row = (int(share * side) for share, side in zip(self.patch, tokens.shape[1::-1], strict=True))
                write_png(similarity_colours(cosine_map(tokens, row, column)), path)

    def draw_attention(
        self, make_maps: Callable[[Sequence[Path]], NDArray[np.float32] | None], key: str, block: int
    ) -> list[Path]:
        """Writes what the class token attends to, from none (dark) to the most of an image (yellow).

        Args:
            make_maps: Files of images -> (images, h, w), None if it is not known.
            key: Of the features.
            block: Where the attention is.

        Returns:
            The files, which are left as they are if they are there; none if it is not known.
        """
        paths = self.files(ATTENTION, key, block)
        if not all(path.is_file() for path in paths):
            maps = make_maps([self.pairs.images[index] for index in self.images])
            if maps is None:
                return []
            for path, one in zip(paths, maps, strict=True):
                write_png(viridis(one / max(float(one.max()), 1e-12)), path)
        return paths

    def _shown_size(self, index: int) -> tuple[int, int]:
        with Image.open(self.pairs.images[index]) as image:
            width, height = image.size
        return _PHOTO_PX, max(1, round(_PHOTO_PX * height / width))


def shown_blocks(blocks: Sequence[int]) -> list[int]:
    """At most :data:`MAX_BLOCKS` of some blocks, spread evenly, the last among them."""
    count = min(MAX_BLOCKS, len(blocks))
    return [blocks[(len(blocks) * (index + 1)) // count - 1] for index in range(count)]
