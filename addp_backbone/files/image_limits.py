"""How large an image file may be: limits on what its header declares, checked before anything is decoded.

20 kB of PNG may declare 500 MB of pixels, and a strip of 1 x 5000 pixels becomes 512 x 2.5 million where the shorter
side is resized. The limits hold for checks, training, evaluation, prediction and editing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

MAX_PIXELS_VARIABLE, MAX_ASPECT_VARIABLE = 'ADDP_MAX_IMAGE_PIXELS', 'ADDP_MAX_ASPECT_RATIO'
DEFAULT_MAX_PIXELS = 120_000_000  # cameras of 102 megapixels; about 2 GB while such an image is decoded
DEFAULT_MAX_ASPECT = 256.0  # resized to 1024 px, a thinner strip is less than 4 px wide


class SizeLimits(NamedTuple):
    """How large and how thin images may be.

    Attributes:
        max_pixels: Largest width x height.
        max_aspect_ratio: Largest ratio of the longer to the shorter side.
    """

    max_pixels: float = DEFAULT_MAX_PIXELS
    max_aspect_ratio: float = DEFAULT_MAX_ASPECT


class ImageSizeError(ValueError):
    """A file declares an image that is beyond the limits; nothing of it was decoded."""


def size_limits() -> SizeLimits:
    """The limits of this process and those that it starts.

    The environment variables ``ADDP_MAX_IMAGE_PIXELS`` (for example ``2.5e8``) and ``ADDP_MAX_ASPECT_RATIO`` set them;
    ``inf`` lifts one.

    Raises:
        ValueError: If a variable is no number over 0.
    """
    values = []
    for name, default in ((MAX_PIXELS_VARIABLE, DEFAULT_MAX_PIXELS), (MAX_ASPECT_VARIABLE, DEFAULT_MAX_ASPECT)):
        text = os.environ.get(name) or str(default)
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not value > 0:
            raise ValueError(
                f'the environment variable {name} is {text!r}, wanted a number over 0, or inf for no limit'
            )
        values.append(value)
    return SizeLimits(*values)


def check_image_size(width: int, height: int) -> None:
    """Compares the size that an image declares with :func:`size_limits`.

    Args:
        width: In pixels.
        height: In pixels.

    Raises:
        ImageSizeError: If it is beyond a limit; the message says which variable raises it.
        ValueError: If a limit is no number.
    """
    limits = size_limits()
    if width * height > limits.max_pixels:
        raise ImageSizeError(
            f'has {width} x {height} pixels ({width * height / 1e6:.1f} megapixels), more than the limit of '
            f'{limits.max_pixels / 1e6:g} megapixels; {MAX_PIXELS_VARIABLE}={width * height} would allow it'
        )
    ratio = max(width, height) / max(min(width, height), 1)
    if ratio > limits.max_aspect_ratio:
        raise ImageSizeError(
            f'has {width} x {height} pixels: one side is {ratio:g} times the other, over the limit of '
            f'{limits.max_aspect_ratio:g}; cut it into pieces ({MAX_ASPECT_VARIABLE}={ratio:g} would allow it)'
        )


def check_regular(path: str | Path) -> None:
    """Refuses pipes and devices, from which reading would wait or take memory for ever.

    Raises:
        OSError: If the path exists and is no file (a folder is refused when it is opened).
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError('is a pipe or a device, wanted a file')


@contextmanager
def open_image(file: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """Opens an image file, of which only the header is read, and closes it.

    Pillow's own limit is raised to ours where it is lower, for the whole process.

    Args:
        file: A path or an open binary file.

    Yields:
        The image, not yet decoded.

    Raises:
        ImageSizeError: If it is beyond :func:`size_limits`.
        OSError: If it is missing or no image; damaged headers raise others of :data:`DECODING_ERRORS`.
    """
    limit = size_limits().max_pixels
    if Image.MAX_IMAGE_PIXELS is not None and limit > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = None if limit == float('inf') else int(limit)
    if isinstance(file, str | Path):
        check_regular(file)
    with Image.open(file) as image:
        check_image_size(*image.size)
        yield image
