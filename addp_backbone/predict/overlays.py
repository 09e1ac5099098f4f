"""Draws predictions on images: instances with boxes, masks and labels; class maps with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

READABLE_PX = 640  # smaller images are enlarged by a whole number towards it, so that labels can be read
MASK_OPACITY = 0.45
CLASS_OPACITY = 0.6
_PIXELS_AT_ONCE = 1 << 20  # blended in float
RGBImage = NDArray[np.uint8]
Palette = Sequence[Sequence[int]]


def draw_instances(
    image: RGBImage,
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    labels: NDArray[np.integer],
    masks: Sequence[NDArray[np.bool_]] | None,
    class_names: Sequence[str],
    palette: Palette,
) -> RGBImage:
    """Draws instances, the surest in front.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) x1, y1, x2, y2 in pixels.
        scores: (N,) in [0, 1].
        labels: (N,) indices into ``class_names``.
        masks: N times (H, W) bool, or None; each is asked for twice, and may be made then.
        class_names: Names.
        palette: An RGB colour for each class.

    Returns:
        (H * k, W * k, 3) uint8 RGB with a whole number k of 1 or more.
    """
    factor = _enlargement(image)
    order = np.argsort(scores, kind='stable')
    canvas = _enlarge(image, factor).copy()
    width = max(1, round(max(canvas.shape) / 400))
    for i in order if masks is not None else ():
        assert masks is not None
        _tint(canvas, _enlarge(masks[i].view(np.uint8), factor), palette[labels[i]])
    for i in order if masks is not None else ():
        assert masks is not None
        mask = _enlarge(masks[i].view(np.uint8), factor)
        x, y, w, h = cv2.boundingRect(mask)
        region = np.ascontiguousarray(mask[y : y + h, x : x + w])
        contours = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))[0] if w else ()
        cv2.drawContours(canvas, contours, -1, [int(c) for c in palette[labels[i]]], width, cv2.LINE_AA)
    canvas_image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(canvas_image)
    for i in order:
        color = tuple(int(c) for c in palette[labels[i]])
        x1, y1, x2, y2 = (float(v) * factor for v in boxes[i])
        draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=color, width=width)
        _draw_tag(draw, canvas_image.size, (x1, y1), f'{class_names[labels[i]]} {scores[i]:.2f}', color)
    return np.asarray(canvas_image)


def draw_class_map(
    image: RGBImage, label_map: NDArray[np.integer], class_names: Sequence[str], palette: Palette
) -> RGBImage:
    """Colours an image by the class of every pixel and writes the classes that occur beside it, the largest on top.

    Args:
        image: (H, W, 3) uint8 RGB.
        label_map: (H, W) indices into ``class_names``; others are left uncoloured.
        class_names: Names.
        palette: An RGB colour for each class.

    Returns:
        uint8 RGB, the legend on the right.
    """
    factor = _enlargement(image)
    colors = np.array([*palette, (0, 0, 0)], np.float32)
    blended = np.empty_like(image)
    counts: NDArray[np.int64] = np.zeros(len(class_names) + 1, np.int64)
    step = max(1, _PIXELS_AT_ONCE // image.shape[1])
    for top in range(0, image.shape[0], step):
        rows = slice(top, top + step)
        labels = label_map[rows].astype(np.int64)
        known = np.where((labels >= 0) & (labels < len(class_names)), labels, len(class_names))
        opacity = CLASS_OPACITY * (known < len(class_names))[..., None]
        blended[rows] = (image[rows] + opacity * (colors[known] - image[rows])).round()
        counts += np.bincount(known.ravel(), minlength=len(counts))
    counts = counts[:-1]
    entries = [
        (class_names[i], counts[i] / label_map.size, tuple(int(c) for c in palette[i]))
        for i in np.argsort(-counts, kind='stable')
        if counts[i]
    ]
    return _with_legend(_enlarge(blended, factor), entries)


def draw_probabilities(
    image: RGBImage, class_names: Sequence[str], probabilities: Sequence[float], palette: Palette
) -> RGBImage:
    """Writes classes and their probabilities beside an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        class_names: Names, the most probable first.
        probabilities: In [0, 1], one for each name.
        palette: An RGB colour for each name.

    Returns:
        uint8 RGB, the legend on the right.
    """
    colors = [tuple(int(c) for c in color) for color in palette]
    return _with_legend(
        _enlarge(image, _enlargement(image)), list(zip(class_names, probabilities, colors, strict=True))
    )


def _tint(canvas: RGBImage, mask: NDArray[np.uint8], color: Sequence[int]) -> None:
    """Blends a colour into the pixels of a mask, in place: by a table of all 256 values, so without float images."""
    x, y, width, height = cv2.boundingRect(mask)
    inside = mask[y : y + height, x : x + width].astype(bool)
    for channel, target in enumerate(color):
        values = np.arange(256, dtype=np.float32)
        table = (values + MASK_OPACITY * (target - values)).round().astype(np.uint8)
        region = canvas[y : y + height, x : x + width, channel]
        region[inside] = table[region[inside]]


def _enlargement(image: RGBImage) -> int:
    return max(1, READABLE_PX // max(image.shape[:2]))


def _enlarge(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return image if factor == 1 else image.repeat(factor, 0).repeat(factor, 1)


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows more than Latin letters."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf'), size_px)


def _draw_tag(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], corner: tuple[float, float], text: str, color: tuple[int, ...]
) -> None:
    """Writes a label above a box's corner, within the image."""
    font = _font(max(10, round(max(size) / 55)))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    x = min(max(corner[0], 0), max(size[0] - width, 0))
    y = corner[1] - height if corner[1] >= height else min(max(corner[1], 0), max(size[1] - height, 0))
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + 3 - left, y + 2 - top), text, font=font, fill=_readable_on(color))


def _readable_on(color: tuple[int, ...]) -> tuple[int, int, int]:
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return (0, 0, 0) if luminance > 130 else (255, 255, 255)


def _with_legend(image: RGBImage, entries: list[tuple[str, float, tuple[int, ...]]]) -> RGBImage:
    font = _font(max(11, min(round(image.shape[0] / 28), 24)))
    line = round(1.6 * font.size)
    num_shown = max(1, (image.shape[0] - line // 2) // line)
    if len(entries) > num_shown:
        rest = sum(share for _, share, _ in entries[num_shown - 1 :])
        entries = [*entries[: num_shown - 1], (f'{len(entries) - num_shown + 1} others', rest, (120, 120, 120))]
    texts = [f'{name}  {share:.1%}' for name, share, _ in entries]
    panel_width = max([round(font.getlength(text)) for text in texts], default=0) + 2 * line
    canvas_image = Image.new('RGB', (image.shape[1] + panel_width, image.shape[0]), (255, 255, 255))
    canvas_image.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas_image)
    for row, (text, (_, _, color)) in enumerate(zip(texts, entries, strict=True)):
        x, y = image.shape[1] + line // 3, line // 3 + row * line
        draw.rectangle((x, y, x + font.size, y + font.size), fill=color, outline=(0, 0, 0))
        draw.text((x + round(1.4 * font.size), y + font.size / 2), text, font=font, fill=(0, 0, 0), anchor='lm')
    return np.asarray(canvas_image)
