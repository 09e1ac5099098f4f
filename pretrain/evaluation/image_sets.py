"""Folders of pictures that are compared: what is in them, and whether it is what the published protocol asks for.

The protocol (reference section 4): 50,000 generated 256 px PNGs against the 50,000 ImageNet validation images,
Resize(256) and CenterCrop(256), saved as PNG; JPEG references shift FID by more than 2.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from addp_backbone.files.images import IMAGE_ENDINGS, is_image_name
from pretrain.data.figures import FIGURE_FILES

NUM_IMAGES = 50_000
SIZE_PX = 256
FORMAT = 'PNG'
MANIFEST_FILE = 'manifest.json'
_MAX_NAMES = 5  # listed in an error


@dataclass(frozen=True)
class PictureSet:
    """The pictures of a folder.

    Attributes:
        folder: Where they are.
        files: Their paths, in torch-fidelity's order.
        sizes: How many there are of each '256x256' (width x height).
        formats: How many there are of each 'PNG', 'JPEG'.
        figures: Names of files that are none of the set's pictures but figures of a run of tools/generate.py.
    """

    folder: Path
    files: tuple[Path, ...]
    sizes: dict[str, int]
    formats: dict[str, int]
    figures: tuple[str, ...]

    @classmethod
    def of_folder(cls, folder: Path) -> PictureSet:
        """Reads the headers of a folder's pictures (subfolders are not searched).

        Raises:
            ValueError: If there is no such folder, no picture in it, or an unreadable one.
        """
        if not folder.is_dir():
            raise ValueError(f'{folder} is no folder of pictures')
        files = [path for path in folder.iterdir() if is_image_name(path.name) and path.is_file()]
        figures = tuple(sorted(path.name for path in files if path.name in FIGURE_FILES))
        files = sorted((path for path in files if path.name not in figures), key=lambda path: str(path.resolve()))
        if not files:
            raise ValueError(f'{folder} holds no pictures ({", ".join(IMAGE_ENDINGS)}); subfolders are not searched')
        sizes: Counter[str] = Counter()
        formats: Counter[str] = Counter()
        for path in files:
            try:
                with Image.open(path) as picture:
                    sizes[f'{picture.width}x{picture.height}'] += 1
                    formats[str(picture.format)] += 1
            except (UnidentifiedImageError, OSError) as error:
                raise ValueError(f'{path} cannot be read: {error}') from error
        return cls(folder, tuple(files), dict(sizes), dict(formats), figures)

    def describe(self) -> dict[str, Any]:
        """What goes into a result."""
        return dict(
            folder=str(self.folder),
            num_images=len(self.files),
            sizes=self.sizes,
            formats=self.formats,
            names_sha256=checksum_of_names(path.name for path in self.files),
            figures_left_out=list(self.figures),
        )


class PictureDataset(Dataset):
    """The pictures of a set as torch-fidelity wants them: (3, H, W) uint8, RGB."""

    def __init__(self, pictures: PictureSet) -> None:
        self.files = pictures.files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        try:
            with Image.open(self.files[index]) as picture:
                return pil_to_tensor(picture.convert('RGB'))
        except OSError as error:
            raise ValueError(f'{self.files[index]} cannot be read, make it again: {error}') from error


def checksum_of_names(names: Iterable[str]) -> str:
    """SHA-256 of the sorted names, a line each."""
    return hashlib.sha256(''.join(f'{name}\n' for name in sorted(names)).encode()).hexdigest()


def protocol() -> dict[str, Any]:
    """What the published figures were measured with."""
    return dict(
        num_generated=NUM_IMAGES,
        num_reference=NUM_IMAGES,
        size=f'{SIZE_PX}x{SIZE_PX}',
        format=FORMAT,
        reference='ImageNet validation images, Resize(256) and CenterCrop(256)',
    )


def protocol_mismatches(generated: PictureSet, reference: PictureSet) -> list[str]:
    """In what the two sets differ from the protocol, a sentence each."""
    found = []
    for role, pictures in (('generated', generated), ('reference', reference)):
        if len(pictures.files) != NUM_IMAGES:
            found.append(f'{len(pictures.files)} {role} images, wanted {NUM_IMAGES}')
        if set(pictures.sizes) != {f'{SIZE_PX}x{SIZE_PX}'}:
            kind = 'sizes are mixed' if len(pictures.sizes) > 1 else 'another size'
            found.append(f'{role} images: {kind}, {_counts(pictures.sizes)}, wanted {SIZE_PX}x{SIZE_PX}')
        if set(pictures.formats) != {FORMAT}:
            found.append(
                f'{role} images: {_counts(pictures.formats)}, wanted {FORMAT} (lossy files shift FID by more than 2)'
            )
    return found + manifest_mismatches(reference)


def manifest_mismatches(pictures: PictureSet) -> list[str]:
    """In what a folder differs from the manifest beside its pictures, if it has one (see tools/prepare_imagenet_val.py)."""
    path = pictures.folder / MANIFEST_FILE
    if not path.exists():
        return []
    manifest = json.loads(path.read_text(encoding='utf-8'))
    if manifest.get('names_sha256') == checksum_of_names(file.name for file in pictures.files):
        return []
    return [
        f'{pictures.folder} holds {len(pictures.files)} images that are not the {manifest.get("num_images")} of its '
        f'{MANIFEST_FILE}: files were lost or added; run tools/prepare_imagenet_val.py again'
    ]


def _counts(numbers: dict[str, int]) -> str:
    shown = sorted(numbers.items(), key=lambda item: -item[1])[:_MAX_NAMES]
    return ', '.join(f'{count} x {name}' for name, count in shown) + (' ...' if len(numbers) > len(shown) else '')
