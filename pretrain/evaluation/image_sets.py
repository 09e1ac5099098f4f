"""Folders of images to compare: their contents, and whether they follow the published protocol.

The protocol (ADDP, section 4; the authors' repository): 50,000 generated 256 px PNGs against the 50,000 ImageNet
validation images, Resize(256) and CenterCrop(256), saved as PNG; JPEG references shift FID by more than 2.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from addp_backbone.files.image_limits import open_image
from addp_backbone.files.images import DECODING_ERRORS, IMAGE_ENDINGS, is_image_name, read_image
from pretrain.data.figures import FIGURE_FILES

NUM_IMAGES = 50_000
SIZE_PX = 256
FORMAT = 'PNG'
MANIFEST_FILE = 'manifest.json'
_MAX_NAMES = 5  # names listed in an error


@dataclass(frozen=True)
class ImageSet:
    """The images of a folder.

    Attributes:
        folder: The folder.
        files: Paths of the images, in torch-fidelity's order.
        sizes: Number of images by size, 'WIDTHxHEIGHT' in pixels.
        formats: Number of images by file format, for example 'PNG'.
        figures: Names of the figures that tools/generate.py left in the folder; they are not part of the set.
    """

    folder: Path
    files: tuple[Path, ...]
    sizes: dict[str, int]
    formats: dict[str, int]
    figures: tuple[str, ...]

    @classmethod
    def of_folder(cls, folder: Path) -> ImageSet:
        """Reads the headers of a folder's images (subfolders are not searched).

        Raises:
            ValueError: If there is no such folder, no image in it, or an unreadable one.
        """
        if not folder.is_dir():
            raise ValueError(f'{folder} is not a folder of images')
        files = [path for path in folder.iterdir() if is_image_name(path.name) and path.is_file()]
        figures = tuple(sorted(path.name for path in files if path.name in FIGURE_FILES))
        files = sorted((path for path in files if path.name not in figures), key=lambda path: str(path.resolve()))
        if not files:
            raise ValueError(f'{folder} holds no images ({", ".join(IMAGE_ENDINGS)}); subfolders are not searched')
        sizes: Counter[str] = Counter()
        formats: Counter[str] = Counter()
        for path in files:
            try:
                with open_image(path) as image:
                    sizes[f'{image.width}x{image.height}'] += 1
                    formats[str(image.format)] += 1
            except DECODING_ERRORS as error:
                raise ValueError(f'{path} cannot be read: {error}') from error
        return cls(folder, tuple(files), dict(sizes), dict(formats), figures)

    def describe(self) -> dict[str, Any]:
        """The description of the set that results contain; JSON types."""
        return dict(
            folder=str(self.folder),
            num_images=len(self.files),
            sizes=self.sizes,
            formats=self.formats,
            names_sha256=checksum_of_names(path.name for path in self.files),
            figures_left_out=list(self.figures),
        )


class ImageSetDataset(Dataset):
    """The images of a set as torch-fidelity expects them: (3, H, W) uint8, RGB.

    Args:
        image_set: The images to read.
    """

    def __init__(self, image_set: ImageSet) -> None:
        self.files = image_set.files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        try:
            return pil_to_tensor(read_image(self.files[index]))
        except OSError as error:
            raise ValueError(f'{self.files[index]} cannot be read, make it again: {error}') from error


def checksum_of_names(names: Iterable[str]) -> str:
    """SHA-256 of the sorted names, one per line."""
    return hashlib.sha256(''.join(f'{name}\n' for name in sorted(names)).encode()).hexdigest()


def protocol() -> dict[str, Any]:
    """The settings of the published measurements."""
    return dict(
        num_generated=NUM_IMAGES,
        num_reference=NUM_IMAGES,
        size=f'{SIZE_PX}x{SIZE_PX}',
        format=FORMAT,
        reference='ImageNet validation images, Resize(256) and CenterCrop(256)',
    )


def protocol_mismatches(generated: ImageSet, reference: ImageSet) -> list[str]:
    """Lists how the two sets differ from the protocol, one sentence per difference."""
    found = []
    for role, image_set in (('generated', generated), ('reference', reference)):
        if len(image_set.files) != NUM_IMAGES:
            found.append(f'{len(image_set.files)} {role} images, wanted {NUM_IMAGES}')
        if set(image_set.sizes) != {f'{SIZE_PX}x{SIZE_PX}'}:
            kind = 'sizes are mixed' if len(image_set.sizes) > 1 else 'another size'
            found.append(f'{role} images: {kind}, {_counts(image_set.sizes)}, wanted {SIZE_PX}x{SIZE_PX}')
        if set(image_set.formats) != {FORMAT}:
            found.append(
                f'{role} images: {_counts(image_set.formats)}, wanted {FORMAT} (lossy files shift FID by more than 2)'
            )
    return found + manifest_mismatches(reference)


def manifest_mismatches(image_set: ImageSet) -> list[str]:
    """Lists how a folder differs from its manifest, if it has one (tools/prepare_imagenet_val.py writes it)."""
    path = image_set.folder / MANIFEST_FILE
    if not path.exists():
        return []
    manifest = json.loads(path.read_text(encoding='utf-8'))
    if manifest.get('names_sha256') == checksum_of_names(file.name for file in image_set.files):
        return []
    return [
        f'{image_set.folder} holds {len(image_set.files)} images that are not the {manifest.get("num_images")} of its '
        f'{MANIFEST_FILE}: files were lost or added; run tools/prepare_imagenet_val.py again'
    ]


def _counts(numbers: dict[str, int]) -> str:
    shown = sorted(numbers.items(), key=lambda item: -item[1])[:_MAX_NAMES]
    return ', '.join(f'{count} x {name}' for name, count in shown) + (' ...' if len(numbers) > len(shown) else '')
