"""Image files: which endings count as images, reading and inspecting them, writing PNGs; ImageNet's mean and deviation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from addp_backbone.files.atomic import replace_file

# torchvision's list (torchvision.datasets.folder.IMG_EXTENSIONS): Pillow and OpenCV both read all of them.
IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
ORIENTATION_TAG, TRANSPOSED_ORIENTATIONS = 0x0112, (5, 6, 7, 8)  # EXIF: a viewer shows these turned by 90 degrees

# Mean and standard deviation of ImageNet's R, G, B values, for pixels in [0, 1] and in [0, 255].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 3]


@dataclass(frozen=True)
class ImageInfo:
    """An image file as training will see it.

    Attributes:
        width: Columns after the EXIF orientation is applied.
        height: Rows after the EXIF orientation is applied.
        transposed: Whether the EXIF orientation exchanges the two.
        error: Why the file cannot be read; None if it can.
    """

    width: int = 0
    height: int = 0
    transposed: bool = False
    error: str | None = None


def is_image_name(name: str) -> bool:
    """Whether a file name or path ends as those of images do (:data:`IMAGE_ENDINGS`), in upper or lower case."""
    return name.lower().endswith(IMAGE_ENDINGS)


def inspect_image(path: Path) -> ImageInfo:
    """Decodes an image completely, so that a truncated file is noticed; never raises."""
    if not path.is_file():
        return ImageInfo(error='does not exist')
    try:
        with Image.open(path) as image:
            transposed = image.getexif().get(ORIENTATION_TAG) in TRANSPOSED_ORIENTATIONS
            image.load()
            width, height = image.size
    except UnidentifiedImageError:
        return ImageInfo(error='is not an image')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL's decoders raise
        return ImageInfo(error=f'cannot be read: {error}')
    return ImageInfo(height, width, True) if transposed else ImageInfo(width, height)


def read_mask(path: Path) -> NDArray[np.generic]:
    """Reads a mask as it is stored, palette images as their indices.

    Args:
        path: An image file with one channel of class ids.

    Returns:
        (height, width), in the dtype of the file.

    Raises:
        ValueError: If the file is missing, unreadable or has more than one channel.
    """
    if not path.is_file():
        raise ValueError('does not exist')
    try:
        with Image.open(path) as image:
            if image.mode not in ('1', 'L', 'P', 'I', 'I;16', 'I;16B'):
                raise ValueError(
                    f'has colours (mode {image.mode}), wanted one channel of class ids: convert the colours to ids first'
                )
            return np.asarray(image)
    except UnidentifiedImageError:
        raise ValueError('is not an image') from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f'cannot be read: {error}') from error


def encode_png(image: Image.Image | NDArray[np.uint8]) -> bytes:
    """Returns the contents of a PNG file.

    Args:
        image: An RGB or greyscale image, or an array: (H, W, 3) RGB or (H, W) with one channel, uint8.
    """
    pixels = np.asarray(image)
    return cv2.imencode('.png', pixels[..., ::-1] if pixels.ndim == 3 else pixels, _PNG_OPTIONS)[1].tobytes()


def write_png(image: Image.Image | NDArray[np.uint8], path: str | Path) -> None:
    """Writes a PNG atomically: the file is whole or not there. ``image`` is as for :func:`encode_png`."""
    replace_file(path, encode_png(image))
