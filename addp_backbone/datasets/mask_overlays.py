"""A picture of a few images with their masks laid over, so that a person sees at once whether the labels are right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from addp_backbone.datasets.mask_values import VOID_ZERO
from addp_backbone.files.images import read_image, read_mask, write_png

HEIGHT_PX = 240
OPACITY = 0.55
LINE_PX = 14
VOID_COLOUR = (0, 0, 0)


def write_overlays(
    pairs: Sequence[tuple[Path, Path]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    void: str,
    out: Path,
) -> None:
    """Draws images with their classes in colour, void in black, and a legend.

    Args:
        pairs: Images and their masks.
        classes: Class names.
        palette: RGB of each class.
        void: How masks count (:mod:`addp_backbone.datasets.mask_values`).
        out: The PNG to write.
    """
    first = 1 if void == VOID_ZERO else 0
    colours = np.zeros((2**16, 3), np.uint8)
    colours[first : first + len(classes)] = np.array([list(colour) for colour in palette], np.uint8)
    colours[255] = VOID_COLOUR
    panels = [_overlay(image, mask, colours) for image, mask in pairs]
    legend_height = LINE_PX * (len(classes) + 1) + 8
    width = max(sum(panel.width for panel in panels), 200)
    sheet = Image.new('RGB', (width, HEIGHT_PX + legend_height), (255, 255, 255))
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width
    draw = ImageDraw.Draw(sheet)
    rows = [(f'{index + first}: {name}', tuple(palette[index])) for index, name in enumerate(classes)]
    for row, (text, colour) in enumerate([*rows, (f'{"0" if first else "255"}: void', VOID_COLOUR)]):
        top = HEIGHT_PX + 4 + row * LINE_PX
        draw.rectangle((4, top + 2, 14, top + 11), fill=tuple(int(value) for value in colour))
        draw.text((20, top), text.encode('ascii', 'replace').decode(), fill=(0, 0, 0))
    write_png(sheet, out)


def _overlay(image_path: Path, mask_path: Path, colours: np.ndarray) -> Image.Image:
    image = read_image(image_path)
    labels = colours[np.asarray(read_mask(mask_path)).astype(np.int64)]
    blended = Image.blend(image, Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST), OPACITY)
    return blended.resize((max(1, round(image.width * HEIGHT_PX / image.height)), HEIGHT_PX))
