"""Image files: which endings count as images, reading and inspecting them, writing PNGs; ImageNet's mean and deviation.

No file is decoded whose header declares a size beyond the limits of :mod:`addp_backbone.files.image_limits`.

Everything reads images as a viewer shows them (:func:`as_shown`): turned by the EXIF orientation, transparent parts on
:data:`BACKGROUND`, 16 bits scaled to 8, the first frame of an animation. Checks, training, evaluation, prediction,
editing and classification therefore see one frame and one set of values.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from addp_backbone.files.atomic import replace_file
from addp_backbone.files.image_limits import MAX_PIXELS_VARIABLE, ImageSizeError, check_regular, open_image

# torchvision's list (torchvision.datasets.folder.IMG_EXTENSIONS): Pillow and OpenCV both read all of them.
IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
ORIENTATION_TAG, TRANSPOSED_ORIENTATIONS = 0x0112, (5, 6, 7, 8)  # EXIF: a viewer shows these turned by 90 degrees
BACKGROUND = (255, 255, 255)  # RGB behind transparent pixels, whose own colours no viewer shows
DECODING_ERRORS = (  # what Pillow raises for files that are truncated, damaged, too large, or not images
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    EOFError,
    struct.error,
    zlib.error,
    MemoryError,
    cv2.error,
    Image.DecompressionBombError,
)

# What OpenCV decodes to the same values as Pillow, and quicker: these formats with three colours or grey of 8 bits. Of
# BMP and PPM it passes over what the header says of the values (masks of the channels, the largest value).
_PLAIN_FORMATS, _PLAIN_MODES = ('JPEG', 'MPO', 'PNG', 'WEBP'), ('RGB', 'L')
_SIXTEEN_BITS = ('I;16', 'I;16B', 'I;16L', 'I;16N')

# Mean and standard deviation of ImageNet's R, G, B values, for pixels in [0, 1] and in [0, 255].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 3]


@dataclass(frozen=True)
class ImageInfo:
    """An image file as everything here reads it.

    Attributes:
        width: Columns after the EXIF orientation is applied.
        height: Rows after the EXIF orientation is applied.
        orientation: The EXIF orientation, 1 to 8; 1 is as stored.
        error: Why the file cannot be read; None if it can.
    """

    width: int = 0
    height: int = 0
    orientation: int = 1
    error: str | None = None

    @property
    def transposed(self) -> bool:
        """Whether the EXIF orientation exchanges width and height."""
        return self.orientation in TRANSPOSED_ORIENTATIONS


def reading_error(error: Exception) -> str:
    """What is wrong with an image file that raised one of :data:`DECODING_ERRORS`, to be put behind its path."""
    if isinstance(error, ImageSizeError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f'has more pixels than the limit, which {MAX_PIXELS_VARIABLE} sets: {error}'
    if isinstance(error, FileNotFoundError):
        return 'does not exist'
    if isinstance(error, UnidentifiedImageError):
        return 'is not an image'
    return f'cannot be read: {error or type(error).__name__}'


def is_image_name(name: str) -> bool:
    """Whether a file name or path ends as those of images do (:data:`IMAGE_ENDINGS`), in upper or lower case."""
    return name.lower().endswith(IMAGE_ENDINGS)


def inspect_image(path: Path) -> ImageInfo:
    """Decodes an image completely, so that a truncated file or one with other pixels is noticed; never raises."""
    return _inspect(path) if path.is_file() else ImageInfo(error='does not exist')


def inspect_content(content: bytes) -> ImageInfo:
    """The same for the content of an image file."""
    return _inspect(io.BytesIO(content))


def _inspect(file: Path | io.BytesIO) -> ImageInfo:
    try:
        with open_image(file) as image:
            orientation = _orientation(image)
            width, height = as_shown(image).size
    except DECODING_ERRORS as error:
        return ImageInfo(error=reading_error(error))
    return ImageInfo(width, height, orientation)


def as_shown(image: Image.Image) -> Image.Image:
    """An image as a viewer shows it.

    Args:
        image: As Pillow opens it.

    Returns:
        RGB with 8 bits a channel, turned by the EXIF orientation; transparent pixels on :data:`BACKGROUND`; of 16 bits
        the upper 8; of an animation the first frame.

    Raises:
        OSError: If the file is damaged, or its pixels have 32 bits, whose range no file states.
    """
    image.load()
    image = ImageOps.exif_transpose(image)  # Pillow turns TIFF itself on loading, and then has no orientation left
    if image.mode in ('I', 'F'):
        raise OSError(f'has pixels of 32 bits (mode {image.mode}), whose range is not stated; save 8 or 16 bits')
    if image.mode in _SIXTEEN_BITS:
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert('RGB')
    if image.has_transparency_data:
        layer = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', layer.size, (*BACKGROUND, 255)), layer).convert('RGB')
    return image.convert('RGB')


def read_image(path: str | Path) -> Image.Image:
    """Reads an image file as a viewer shows it.

    Args:
        path: The file.

    Returns:
        RGB with 8 bits a channel (:func:`as_shown`).

    Raises:
        OSError: If the file is missing, truncated or not an image; damaged files raise others of
            :data:`DECODING_ERRORS`.
        ImageSizeError: If it is beyond the limits.
    """
    with open_image(path) as image:
        return as_shown(image)


def read_pixels(path: str | Path) -> NDArray[np.uint8]:
    """Reads an image file as a viewer shows it, as OpenMMLab's pipelines want it.

    Ordinary files are decoded by OpenCV, as mmcv does; others as by :func:`read_image`.

    Args:
        path: The file.

    Returns:
        (H, W, 3), BGR, C-contiguous.

    Raises:
        OSError: As :func:`read_image`.
        ImageSizeError: As :func:`read_image`.
    """
    check_regular(path)
    return decode_pixels(Path(path).read_bytes())


def decode_pixels(content: bytes) -> NDArray[np.uint8]:
    """Decodes the content of an image file; result and errors are those of :func:`read_pixels`."""
    with open_image(io.BytesIO(content)) as image:
        plain = image.format in _PLAIN_FORMATS and image.mode in _PLAIN_MODES and 'transparency' not in image.info
        if plain and (image.format == 'MPO' or getattr(image, 'n_frames', 1) == 1):
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
            if decoded is not None:
                return turned(decoded.astype(np.uint8, copy=False), _orientation(image))
        return np.ascontiguousarray(np.asarray(as_shown(image))[..., ::-1])


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns stored pixels as an EXIF orientation says.

    Args:
        pixels: (H, W) or (H, W, C).
        orientation: 1 to 8.

    Returns:
        The pixels as shown, C-contiguous; (W, H, ...) for 5 to 8.
    """
    if orientation in TRANSPOSED_ORIENTATIONS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or another value; to be asked before the pixels are loaded."""
    value = image.getexif().get(ORIENTATION_TAG, 1)
    return value if value in range(1, 9) else 1


def read_mask(path: Path) -> NDArray[np.generic]:
    """Reads a mask as it is stored, palette images as their indices.

    Args:
        path: An image file with one channel of class ids.

    Returns:
        (height, width), in the dtype of the file.

    Raises:
        ValueError: If the file is missing, unreadable or has more than one channel.
    """
    try:
        with open_image(path) as image:
            problem = mask_problem(image)
            if problem is None:
                return np.asarray(image)
    except ImageSizeError:
        raise
    except DECODING_ERRORS as error:
        raise ValueError(reading_error(error)) from error
    raise ValueError(problem)


def mask_problem(image: Image.Image) -> str | None:
    """Why an image cannot hold class ids; None if it can."""
    if image.format in ('JPEG', 'MPO'):
        return 'is a JPEG, whose compression changes class ids: export the masks as PNG'
    if image.mode == 'F':
        return 'has floating-point pixels, wanted class ids: export the masks as PNG of 8 bits'
    if image.mode not in ('1', 'L', 'P', 'I', 'I;16', 'I;16B'):
        return f'has colours (mode {image.mode}), wanted one channel of class ids: --convert colours'
    return None


def encode_png(image: Image.Image | NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Returns the contents of a PNG file.

    Args:
        image: An RGB or greyscale image, or an array: (H, W, 3) RGB or (H, W) with one channel, uint8 or
            uint16.
    """
    pixels = np.asarray(image)
    return cv2.imencode('.png', pixels[..., ::-1] if pixels.ndim == 3 else pixels, _PNG_OPTIONS)[1].tobytes()


def write_png(image: Image.Image | NDArray[np.uint8], path: str | Path) -> None:
    """Writes a PNG atomically: the file is whole or not there. ``image`` is as for :func:`encode_png`."""
    replace_file(path, encode_png(image))
