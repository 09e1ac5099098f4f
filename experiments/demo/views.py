"""What the demo shows of an image: prediction, table, and features as colours and as similarity to a patch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from addp_backbone.export.preprocessing import RGB, describe_preprocessing
from addp_backbone.predict.predictor import Predictor, UnreadableImageError, read_source
from experiments.probes.pictures import cosine_map, principal_colours, similarity_colours

MAX_SHOWN_PX, READABLE_PX = 1280, 640  # longer side of what is sent to the browser; smaller images are enlarged to it
MAX_FEATURE_PX = 1024  # longer side for features: attention over all patches grows with its fourth power
SIMILARITY_OPACITY = 0.65
BOX = 'x y w h'
TABLE_COLUMNS = {
    'objects': ('class', 'score', BOX),
    'fractions': ('class', 'share of pixels'),
    'classes': ('class', 'probability'),
}
BGRPixels = NDArray[np.uint8]


class Table(NamedTuple):
    """Rows for people.

    Attributes:
        columns: Their names.
        rows: Values, numbers rounded.
    """

    columns: list[str]
    rows: list[list[Any]]


def read_upload(path: str | Path) -> BGRPixels:
    """Reads an uploaded file as ``tools/predict.py`` reads its images; errors have the file's name, not its folder.

    Returns:
        (H, W, 3) uint8 BGR, in the frame that a viewer shows.

    Raises:
        UnreadableImageError: If it is no image, damaged, or beyond the limits on sizes.
    """
    try:
        return read_source(str(path))
    except UnreadableImageError as error:
        raise UnreadableImageError(str(error).replace(str(path), Path(path).name)) from error


def to_image(pixels: BGRPixels) -> Image.Image:
    """BGR pixels as an RGB image."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))


def fit_to_screen(image: Image.Image, readable_px: int = READABLE_PX) -> Image.Image:
    """Shrinks an image to :data:`MAX_SHOWN_PX`, or enlarges it by a whole number towards ``readable_px``."""
    longest = max(image.size)
    if longest > MAX_SHOWN_PX:
        size = [max(1, round(side * MAX_SHOWN_PX / longest)) for side in image.size]
        return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    factor = max(1, readable_px // longest)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def predict(predictor: Predictor, pixels: BGRPixels, score_thr: float) -> tuple[Image.Image, Table]:
    """Predicts for an image.

    Args:
        predictor: The model.
        pixels: (H, W, 3) uint8 BGR.
        score_thr: Detections below are left out.

    Returns:
        The overlay, and the prediction as a table.
    """
    predictor.score_thr = score_thr
    prediction = predictor.predict_pixels(pixels)
    overlay = prediction.draw(np.ascontiguousarray(pixels[..., ::-1]))
    return fit_to_screen(Image.fromarray(overlay)), make_table(prediction.to_json())


def make_table(record: dict[str, Any]) -> Table:
    """The columns and rows of a prediction's JSON."""
    if 'objects' in record:
        boxes = (' '.join(f'{value:.0f}' for value in one['bbox']) for one in record['objects'])
        rows = [
            [one['category'], round(one['score'], 3), box] for one, box in zip(record['objects'], boxes, strict=True)
        ]
        return Table(list(TABLE_COLUMNS['objects']), rows)
    if 'fractions' in record:
        rows = [[name, round(share, 4)] for name, share in record['fractions'].items()]
        return Table(list(TABLE_COLUMNS['fractions']), rows)
    rows = [[one['category'], round(one['score'], 4)] for one in record['classes']]
    return Table(list(TABLE_COLUMNS['classes']), rows)


def compute_features(predictor: Predictor, pixels: BGRPixels) -> NDArray[np.float32]:
    """The backbone's last map for an image.

    The image is resized to the longer side of the config's test pipeline (a classifier's ``img_size``), at most
    :data:`MAX_FEATURE_PX`, with sides in whole patches, so that the map covers it exactly; a backbone with positions
    for one size gets that size.

    Args:
        predictor: The model.
        pixels: (H, W, 3) uint8 BGR.

    Returns:
        (rows, columns, channels).

    Raises:
        ValueError: If the model has no backbone that gives maps, or the config does not state its normalisation.
    """
    model: Any = getattr(predictor.model, 'module', predictor.model)  # of test-time augmentation
    backbone = getattr(model, 'backbone', None)
    about = describe_preprocessing(predictor.config, model)
    if backbone is None or about['mean'] is None:
        raise ValueError(f'{type(model).__name__} has no feature maps that can be shown')
    size = feature_size(backbone, to_size(pixels), about['longest'] or getattr(backbone, 'img_size', None))
    resized = np.asarray(to_image(pixels).resize(size, Image.Resampling.BICUBIC), np.float32)
    if predictor.wants_bgr and about['channels'] != RGB:
        resized = resized[..., ::-1]
    values = (resized - np.float32(about['mean'])) / np.float32(about['std'])
    images = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None].to(next(model.parameters()))
    with torch.inference_mode():
        return _last_map(backbone(images), size).float().cpu().numpy()


def _last_map(output: Any, size: tuple[int, int]) -> torch.Tensor:
    """(rows, columns, channels) of the first image, from maps, or from a classifier's tokens, cls first."""
    if not isinstance(output, torch.Tensor):
        return output[-1][0].permute(1, 2, 0)
    patches = output[0, 1:]
    rows = math.isqrt(len(patches) * size[1] // size[0])
    return patches.unflatten(0, (rows, -1))


def to_size(pixels: BGRPixels) -> tuple[int, int]:
    """(width, height) of pixels."""
    return pixels.shape[1], pixels.shape[0]


def feature_size(backbone: Any, size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    """The (width, height) that an image of ``size`` is resized to for features; see :func:`compute_features`."""
    step = int(getattr(backbone, 'stride', 0) or backbone.patch_size)
    if getattr(backbone, 'grid', None):
        rows, columns = backbone.grid
        return columns * step, rows * step
    factor = min(longest or max(size), MAX_FEATURE_PX) / max(size)
    width, height = (max(1, round(side * factor / step)) * step for side in size)
    return width, height


def draw_components(tokens: NDArray[np.floating], size: tuple[int, int]) -> Image.Image:
    """The first three principal components of a map (rows, columns, channels) as colours, a square for each patch."""
    (colours,) = principal_colours([tokens])
    return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)


def draw_similarity(tokens: NDArray[np.floating], shown: Image.Image, x: float, y: float) -> Image.Image:
    """Colours an image by how similar its patches are to one of them.

    Args:
        tokens: (rows, columns, channels), a map that covers the image.
        shown: The image in any size.
        x: Of the patch, in pixels of ``shown``.
        y: Likewise.

    Returns:
        The image with Viridis colours, yellow for the most similar, and a ring around the point.
    """
    rows, columns = tokens.shape[:2]
    column = min(max(int(x * columns / shown.width), 0), columns - 1)
    row = min(max(int(y * rows / shown.height), 0), rows - 1)
    colours = Image.fromarray(np.ascontiguousarray(similarity_colours(cosine_map(tokens, row, column))))
    blended = Image.blend(
        shown.convert('RGB'), colours.resize(shown.size, Image.Resampling.NEAREST), SIMILARITY_OPACITY
    )
    draw = ImageDraw.Draw(blended)
    for radius, colour in ((9, 'black'), (8, 'white'), (7, 'white'), (6, 'black')):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour)
    return blended
