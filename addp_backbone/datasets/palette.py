"""Colours that tell classes apart."""

from __future__ import annotations

import colorsys

GOLDEN_RATIO = 0.61803398875


def class_palette(num_classes: int) -> list[tuple[int, int, int]]:
    """Colours for any number of classes: neighbours differ much in hue, and lightness varies slowly over three levels.

    Args:
        num_classes: How many.

    Returns:
        RGB, 0 to 255; the same for the same index, whatever the number.
    """
    palette = []
    for index in range(num_classes):
        hue = (0.02 + index * GOLDEN_RATIO) % 1
        saturation, value = ((0.85, 0.95), (0.6, 0.8), (0.95, 0.65))[index // 3 % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        palette.append((round(255 * red), round(255 * green), round(255 * blue)))
    return palette
