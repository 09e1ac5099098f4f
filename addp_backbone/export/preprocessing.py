"""How an image becomes a network's input: read from a config, written into the file, and done again in numpy.

The description has plain names and values, so that another program can follow it: resize (bilinear, pixel centres at
half-integers, no antialiasing), ``(pixels - mean) / std`` on RGB values in [0, 255], zeros at the bottom and on the
right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RGB = 'RGB'


def describe_preprocessing(cfg: Any, model: Any) -> dict[str, Any]:
    """Reads the preprocessing of tests from a config and the built model.

    Args:
        cfg: Config with ``test_dataloader``.
        model: The model; its ``data_preprocessor`` has mean, deviation and padding.

    Returns:
        ``channels`` ('RGB' or 'BGR'), ``mean`` and ``std`` (3 numbers in that order), ``pad_multiple``, and ``longest``
        and ``shortest``, the sides in pixels that an image is resized to, whichever is met first. What the config does
        not say is None.
    """
    preprocessor = model.data_preprocessor
    described: dict[str, Any] = dict(mean=None, std=None, longest=None, shortest=None)
    if getattr(preprocessor, '_enable_normalize', False):
        described['mean'], described['std'] = (
            [float(value) for value in getattr(preprocessor, name).flatten()] for name in ('mean', 'std')
        )
    to_rgb = getattr(preprocessor, '_channel_conversion', False)  # the pipeline's images are BGR
    described['channels'] = RGB if to_rgb else RGB[::-1]
    described['pad_multiple'] = int(getattr(preprocessor, 'pad_size_divisor', 1) or 1)
    for step in cfg.test_dataloader.dataset.get('pipeline', ()):
        if str(step.get('type', '')).endswith('Resize') and step.get('keep_ratio') and step.get('scale'):
            described.update(longest=int(max(step['scale'])), shortest=int(min(step['scale'])))
    return described


def prepare_image(image: Image.Image, description: Mapping[str, Any]) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Makes a network's input of an image.

    Args:
        image: RGB, as a viewer shows it.
        description: An ONNX file's metadata.

    Returns:
        (3, H, W) float32, and (height, width) of the image in it, without padding.

    Raises:
        ValueError: If the file's metadata do not describe the preprocessing.
    """
    if not description.get('longest') or not description.get('mean'):
        raise ValueError('the metadata have no resizing or normalisation: the config has another test pipeline')
    width, height = image.size
    factor = min(description['longest'] / max(width, height), description['shortest'] / min(width, height))
    fixed = description.get('fixed_size')
    if fixed:
        factor = min(factor, fixed[0] / height, fixed[1] / width)
    new_width, new_height = int(width * factor + 0.5), int(height * factor + 0.5)
    scale = (width / new_width, 0, 0, 0, height / new_height, 0)
    resized = image.transform((new_width, new_height), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, np.float32)
    if description['channels'] == RGB[::-1]:
        pixels = pixels[..., ::-1]
    pixels = (pixels - np.float32(description['mean'])) / np.float32(description['std'])
    padded_height, padded_width = padded_size((new_height, new_width), description)
    padding = ((0, padded_height - new_height), (0, padded_width - new_width), (0, 0))
    return np.pad(pixels, padding).transpose(2, 0, 1), (new_height, new_width)


def padded_size(size: tuple[int, int], description: Mapping[str, Any]) -> tuple[int, int]:
    """The height and width that an image of ``size`` is padded to."""
    if description.get('fixed_size'):
        return tuple(description['fixed_size'])
    multiple = description['multiple']
    height, width = (
        -(-max(side, least) // multiple) * multiple for side, least in zip(size, description['smallest'], strict=True)
    )
    return height, width
