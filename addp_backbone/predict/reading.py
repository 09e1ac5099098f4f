"""Reads an image in any of the forms that a prediction takes, as a viewer shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from addp_backbone.files.image_limits import check_image_size
from addp_backbone.files.images import (
    DECODING_ERRORS,
    as_shown,
    decode_pixels,
    inspect_content,
    inspect_image,
    read_pixels,
    reading_error,
)
from addp_backbone.predict.web import URLsNotAllowedError, fetch, is_url

ImageSource = str | Path | Image.Image | NDArray[np.uint8]


class UnreadableImageError(ValueError):
    """An image file is missing, truncated or no image."""


def read_source(image: ImageSource, allow_urls: bool = False) -> NDArray[np.uint8]:
    """Reads an image in any of the forms that :class:`addp_backbone.predict.Predictor` takes.

    Args:
        image: A file; a URL of http or https; an image as Pillow opens it; or (H, W, 3) uint8 RGB.
        allow_urls: Whether URLs are fetched (:func:`addp_backbone.predict.web.fetch` has the limits).

    Returns:
        (H, W, 3) uint8 BGR, in the frame that a viewer shows.

    Raises:
        UnreadableImageError: If it cannot be read, or is beyond the limits on sizes.
        TypeError: If it is none of them, or an array is not (H, W, 3) uint8.
        ValueError: If it is a URL and URLs are not allowed.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise TypeError(f'got an array {image.shape} of {image.dtype}, wanted (H, W, 3) of uint8: RGB, 0 to 255')
    elif not isinstance(image, str | Path | Image.Image):
        raise TypeError(
            f'got an image of type {type(image).__name__}, wanted a path, a URL, an image of Pillow, or an array '
            '(H, W, 3) of uint8: RGB, 0 to 255'
        )
    try:
        if isinstance(image, np.ndarray):
            check_image_size(image.shape[1], image.shape[0])
            return np.ascontiguousarray(image[..., ::-1])
        if isinstance(image, Image.Image):
            check_image_size(*image.size)
            return np.ascontiguousarray(np.asarray(as_shown(image))[..., ::-1])
        if is_url(str(image)):
            return _read_url(str(image), allow_urls)
        info = inspect_image(Path(image))  # decodes as Pillow does, which notices what is truncated
        if info.error:
            raise UnreadableImageError(f'{image}: {info.error}')
        return read_pixels(image)
    except (UnreadableImageError, URLsNotAllowedError):
        raise
    except DECODING_ERRORS as error:
        name = f'{image}:' if isinstance(image, str | Path) else 'the image'
        raise UnreadableImageError(f'{name} {reading_error(error)}') from error


def _read_url(url: str, allowed: bool) -> NDArray[np.uint8]:
    if not allowed:
        raise URLsNotAllowedError(url)
    content = fetch(url)
    info = inspect_content(content)
    if info.error:
        raise UnreadableImageError(f'{url}: {info.error}')
    return decode_pixels(content)
