"""Procedural textures for generated pictures: stripes, checks, dots, marble, clouds, cells; numpy and OpenCV only."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell_px: float, octaves: int = 3) -> FloatArray:
    """Fractal noise: random grids, each octave twice as fine and half as strong, interpolated smoothly.

    Args:
        rng: Source of randomness.
        height: Rows.
        width: Columns.
        cell_px: Size of the coarsest grid cell in pixels.
        octaves: Number of grids.

    Returns:
        (height, width) float32 in [0, 1].
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cell = max(1.0, cell_px / 2**octave)
        grid = rng.random((int(height / cell) + 3, int(width / cell) + 3), dtype=np.float32)
        enlarged = cv2.resize(grid, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        total += enlarged[:height, :width] / 2**octave
    return rescale(total)


def rescale(field: FloatArray) -> FloatArray:
    """Maps a field's range to [0, 1] (a constant one to 0)."""
    low, high = float(field.min()), float(field.max())
    return ((field - low) / max(high - low, 1e-6)).astype(np.float32)


def _rotated_coordinates(rng: np.random.Generator, height: int, width: int) -> tuple[FloatArray, FloatArray]:
    """Pixel coordinates along and across a random direction, from a random origin."""
    angle, origin = rng.uniform(0, np.pi), rng.uniform(0, 100, 2)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along = (x - origin[0]) * np.cos(angle) + (y - origin[1]) * np.sin(angle)
    across = (y - origin[1]) * np.cos(angle) - (x - origin[0]) * np.sin(angle)
    return along.astype(np.float32), across.astype(np.float32)


def _stripes(rng: np.random.Generator, height: int, width: int, cell_px: float) -> FloatArray:
    along, _ = _rotated_coordinates(rng, height, width)
    return np.clip(0.5 + rng.uniform(0.6, 3.0) * np.sin(2 * np.pi * along / cell_px), 0, 1)


def _checks(rng: np.random.Generator, height: int, width: int, cell_px: float) -> FloatArray:
    along, across = _rotated_coordinates(rng, height, width)
    return np.clip(0.5 + 4 * np.sin(np.pi * along / cell_px) * np.sin(np.pi * across / cell_px), 0, 1)


def _dots(rng: np.random.Generator, height: int, width: int, cell_px: float) -> FloatArray:
    along, across = _rotated_coordinates(rng, height, width)
    distance = np.hypot(along % cell_px - cell_px / 2, across % cell_px - cell_px / 2)
    return np.clip(cell_px * rng.uniform(0.2, 0.35) - distance + 0.5, 0, 1)


def _marble(rng: np.random.Generator, height: int, width: int, cell_px: float) -> FloatArray:
    along, _ = _rotated_coordinates(rng, height, width)
    warp = smooth_noise(rng, height, width, 2 * cell_px)
    return 0.5 + 0.5 * np.sin(2 * np.pi * along / (1.5 * cell_px) + rng.uniform(4, 9) * warp)


def _clouds(rng: np.random.Generator, height: int, width: int, cell_px: float) -> FloatArray:
    return smooth_noise(rng, height, width, 2 * cell_px, octaves=4)


def _cells(rng: np.random.Generator, height: int, width: int, cell_px: float) -> FloatArray:
    num_points = max(2, round(height * width / cell_px**2))
    seeds = np.full((height, width), 255, np.uint8)
    seeds[rng.integers(0, height, num_points), rng.integers(0, width, num_points)] = 0
    return np.clip(cv2.distanceTransform(seeds, cv2.DIST_L2, 3) / cell_px, 0, 1)


PATTERNS: tuple[Callable[[np.random.Generator, int, int, float], FloatArray], ...] = (
    _stripes,
    _checks,
    _dots,
    _marble,
    _clouds,
    _cells,
)
CHECKS, CLOUDS = PATTERNS.index(_checks), PATTERNS.index(_clouds)


def draw_palette(rng: np.random.Generator, num_hues: int = 3) -> FloatArray:
    """Draws the hues of a scene, so that objects and background share their colours and colour alone tells nothing.

    Returns:
        (num_hues,) float32 in [0, 1).
    """
    return (rng.random() + np.cumsum(rng.uniform(0.08, 0.38, num_hues))).astype(np.float32) % 1


def draw_color(
    rng: np.random.Generator, hues: FloatArray, saturation: tuple[float, float] = (0.15, 0.85)
) -> FloatArray:
    """Draws an RGB colour near one of the hues; (3,) float32 in [0, 1]."""
    hue = (rng.choice(hues) + rng.normal(0, 0.025)) % 1
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(0.3, 1.0)), np.float32)


def draw_texture(
    rng: np.random.Generator,
    height: int,
    width: int,
    cell_px: float,
    hues: FloatArray,
    contrast: float = 1.0,
    pattern: int | None = None,
    saturation: tuple[float, float] = (0.15, 0.85),
) -> FloatArray:
    """Draws a pattern between two colours, with a little grain.

    Args:
        rng: Source of randomness.
        height: Rows.
        width: Columns.
        cell_px: Size of the pattern's elements in pixels.
        hues: From :func:`draw_palette`.
        contrast: 1 for two independent colours, towards 0 for one.
        pattern: Index into :data:`PATTERNS`; None draws one.
        saturation: Smallest and largest saturation of the colours, in [0, 1].

    Returns:
        (height, width, 3) float32 RGB in about [0, 1].
    """
    first = draw_color(rng, hues, saturation)
    second = first + contrast * (draw_color(rng, hues, saturation) - first)
    draw = PATTERNS[rng.integers(len(PATTERNS)) if pattern is None else pattern]
    texture = first + draw(rng, height, width, max(cell_px, 3.0))[..., None] * (second - first)
    grain = smooth_noise(rng, height, width, max(cell_px / 2, 2.0), octaves=2) - 0.5
    return (texture * (1 + 0.25 * grain[..., None])).astype(np.float32)
