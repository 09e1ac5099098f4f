"""Pictures of textured shapes with exact instance masks: a data set that needs no download.

A scene is a cluttered, textured background with shapes of ten classes on it, which overlap, are turned, stretched, lit
and partly hidden. Everything is a function of one ``numpy`` generator. ``tools/make_shapes.py`` writes data sets of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from addp_backbone.datasets.shapes.textures import CHECKS, CLOUDS, FloatArray, draw_palette, draw_texture, smooth_noise

SHAPE_CLASSES = ('circle', 'square', 'triangle', 'star', 'ring', 'cross', 'hexagon', 'heart', 'crescent', 'arrow')
MIN_VISIBLE_FRACTION = 0.4  # of a shape, after everything in front of it
PLACEMENT_TRIALS = 12
SUPERSAMPLING = 4
MAX_CLUTTER = 21
Contours = list[FloatArray]


@dataclass(frozen=True)
class Material:
    """What a surface is made of; the defaults leave everything to chance.

    Attributes:
        pattern: Index into :data:`addp_backbone.datasets.shapes.textures.PATTERNS`, or None for any.
        hue: In [0, 1), or None for any of the scene's.
        saturation: Smallest and largest saturation of its colours.
        cells: Smallest and largest size of the pattern's elements, as a share of the shape's side.
    """

    pattern: int | None = None
    hue: float | None = None
    saturation: tuple[float, float] = (0.15, 0.85)
    cells: tuple[float, float] = (0.12, 0.5)


ANY_MATERIAL = Material()
DULL = Material(pattern=CLOUDS, saturation=(0.0, 0.3))  # of backgrounds where classes have typical materials


@dataclass(frozen=True)
class Scene:
    """A generated picture and what is on it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (N,) int64, indices into :data:`SHAPE_CLASSES`, from back to front.
        masks: (N, H, W) bool, the visible pixels of each shape; no two overlap.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


def _polar(angles: FloatArray, radii: FloatArray | float) -> FloatArray:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1).astype(np.float32)


def _regular(num_corners: int, inner_radius: float = 0.0) -> FloatArray:
    """A regular polygon, or a star if ``inner_radius`` is given."""
    if inner_radius:
        angles = np.arange(2 * num_corners) * np.pi / num_corners
        return _polar(angles, np.where(np.arange(2 * num_corners) % 2, inner_radius, 1.0))
    return _polar(np.arange(num_corners) * 2 * np.pi / num_corners, 1.0)


def _raw_outline(name: str) -> Contours:
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    if name in ('circle', 'ring'):
        return [_polar(turn, 1.0)] if name == 'circle' else [_polar(turn, 1.0), _polar(turn, 0.58)]
    if name in ('square', 'triangle', 'hexagon'):
        return [_regular({'square': 4, 'triangle': 3, 'hexagon': 6}[name])]
    if name == 'star':
        return [_regular(5, inner_radius=0.45)]
    if name == 'heart':
        x, y = (
            16 * np.sin(turn) ** 3,
            13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn),
        )
        return [np.stack([x, -y], axis=1).astype(np.float32)]
    if name == 'crescent':  # the outer arc of a circle, and back along one that is shifted to the right
        outer = np.linspace(np.pi / 3, 2 * np.pi - np.pi / 3, 48)
        inner_radius = np.hypot(0.5 - 0.75, np.sin(np.pi / 3))
        start = np.arctan2(-np.sin(np.pi / 3), 0.5 - 0.75)
        inner = np.linspace(start + 2 * np.pi, -start, 40)
        return [np.concatenate([_polar(outer, 1.0), _polar(inner, inner_radius) + np.array([0.75, 0], np.float32)])]
    if name == 'cross':
        arm = 0.3
        corner = np.array([[arm, 1], [arm, arm], [1, arm]])
        quarter = np.array([[0, -1], [1, 0]])  # turns row vectors by 90 degrees clockwise
        return [np.concatenate([corner @ np.linalg.matrix_power(quarter, i) for i in range(4)]).astype(np.float32)]
    if name == 'arrow':
        return [np.array([[-1, -0.3], [0.1, -0.3], [0.1, -0.8], [1, 0], [0.1, 0.8], [0.1, 0.3], [-1, 0.3]], np.float32)]
    raise ValueError(f'unknown shape {name!r}: use one of {SHAPE_CLASSES}')


@cache
def shape_outline(name: str) -> tuple[FloatArray, ...]:
    """Outline of a class: centred, of area 1 (so that size does not give the class away).

    Args:
        name: One of :data:`SHAPE_CLASSES`.

    Returns:
        Closed contours, (K, 2) float32 x, y each; a second one is a hole.

    Raises:
        ValueError: If the name is unknown.
    """
    contours = _raw_outline(name)
    areas = [abs(float(cv2.contourArea(c))) for c in contours]
    area = areas[0] - sum(areas[1:])
    moments = cv2.moments(contours[0])
    center = np.array([moments['m10'], moments['m01']], np.float32) / np.float32(moments['m00'])
    return tuple((c - center) / np.float32(np.sqrt(area)) for c in contours)


class Canvas:
    """A picture being painted from back to front, and the visible part of every shape on it.

    Args:
        rng: Source of randomness.
        height: Rows.
        width: Columns.
        ground: What the background is made of.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int, ground: Material = ANY_MATERIAL):
        self.rng = rng
        self.hues = draw_palette(rng)
        self.unit_px = float(min(height, width))
        angle = rng.uniform(0, 2 * np.pi)
        self.light: FloatArray = np.array([np.cos(angle), np.sin(angle)], np.float32)
        self.pixels = draw_texture(
            rng,
            height,
            width,
            self.unit_px * rng.uniform(0.06, 0.3),
            self.hues,
            contrast=rng.uniform(0.3, 0.9),
            pattern=ground.pattern,
            saturation=ground.saturation,
        )
        self.visible: list[NDArray[np.bool_]] = []
        self.full_areas: list[float] = []

    def coverage(self, contours: Sequence[FloatArray]) -> FloatArray:
        """Share of every pixel inside the contours (even-odd rule): (H, W) float32 in [0, 1]."""
        height, width = self.pixels.shape[:2]
        points = np.concatenate(list(contours))
        x0, y0 = np.clip(np.floor(points.min(0)).astype(int), 0, [width, height])
        x1, y1 = np.clip(np.ceil(points.max(0)).astype(int) + 1, 0, [width, height])
        alpha = np.zeros((height, width), np.float32)
        if x1 > x0 and y1 > y0:
            fine = np.zeros(((y1 - y0) * SUPERSAMPLING, (x1 - x0) * SUPERSAMPLING), np.uint8)
            corners = [np.round((c - [x0, y0]) * SUPERSAMPLING).astype(np.int32) for c in contours]
            cv2.fillPoly(fine, corners, 255)
            alpha[y0:y1, x0:x1] = cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA) / np.float32(255)
        return alpha

    def leaves_others_visible(self, alpha: FloatArray) -> bool:
        """Whether enough of every shape stays visible behind ``alpha``."""
        hidden = alpha > 0.5
        return all(
            np.count_nonzero(mask & ~hidden) >= MIN_VISIBLE_FRACTION * area
            for mask, area in zip(self.visible, self.full_areas, strict=True)
        )

    def paint(self, alpha: FloatArray, cell_px: float, relief_px: float, material: Material = ANY_MATERIAL) -> None:
        """Paints a textured, lit patch with a soft shadow where ``alpha`` is, in front of everything so far."""
        ys, xs = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
        margin = int(3 * relief_px) + 2
        rows = slice(max(ys[0] - margin, 0), ys[-1] + margin + 1)
        columns = slice(max(xs[0] - margin, 0), xs[-1] + margin + 1)
        patch, target = alpha[rows, columns], self.pixels[rows, columns]
        shift = np.array([[1, 0, -self.light[0] * relief_px], [0, 1, -self.light[1] * relief_px]], np.float32)
        height, width = patch.shape
        shadow = cv2.GaussianBlur(cv2.warpAffine(patch, shift, (width, height)), (0, 0), max(relief_px, 0.6))
        target *= 1 - 0.55 * shadow[..., None]
        hues = self.hues if material.hue is None else np.array([material.hue], np.float32)
        texture = draw_texture(
            self.rng, height, width, cell_px, hues, pattern=material.pattern, saturation=material.saturation
        )
        texture *= self._shading(patch, relief_px)[..., None]
        target += patch[..., None] * (texture - target)
        hidden = alpha > 0.5
        self.visible = [mask & ~hidden for mask in self.visible]

    def _shading(self, alpha: FloatArray, relief_px: float) -> FloatArray:
        """Brightness of a surface that rises from its edge over ``relief_px`` pixels."""
        distance = cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        height = cv2.GaussianBlur(np.minimum(distance, relief_px), (0, 0), max(relief_px / 3, 0.6))
        slope = cv2.Sobel(height, -1, 1, 0) * self.light[0] + cv2.Sobel(height, -1, 0, 1) * self.light[1]
        return np.clip(1.0 - 0.09 * slope, 0.5, 1.5).astype(np.float32)

    def add_shape(self, alpha: FloatArray, cell_px: float, relief_px: float, material: Material = ANY_MATERIAL) -> None:
        """Paints a shape and records it."""
        self.paint(alpha, cell_px, relief_px, material)
        self.visible.append(alpha > 0.5)
        self.full_areas.append(float(alpha.sum()))


def _place(rng: np.random.Generator, name: str, side_px: float, center: FloatArray) -> Contours:
    """Turns, stretches and moves a class's outline."""
    angle, tilt = rng.uniform(0, 2 * np.pi, 2)
    stretch = rng.uniform(1.0, 1.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    axis = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    transform = side_px * axis @ np.diag([stretch, 1 / stretch]) @ axis.T @ turn
    return [(contour @ transform.T + center).astype(np.float32) for contour in shape_outline(name)]


def _blob(rng: np.random.Generator, center: FloatArray, side_px: float) -> Contours:
    """An irregular blob: clutter that belongs to no class."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radii = np.ones(64)
    for frequency in range(2, 7):
        radii += rng.uniform(0.05, 0.22) * np.sin(frequency * angles + rng.uniform(0, 2 * np.pi))
    return [(_polar(angles, np.maximum(radii, 0.15)) * side_px * rng.uniform(0.25, 1, 2) + center).astype(np.float32)]


def _stroke(rng: np.random.Generator, start: FloatArray, length_px: float, width_px: float) -> Contours:
    """A bent band: clutter that belongs to no class."""
    steps = np.cumsum(rng.uniform(-0.35, 0.35, 16)) + rng.uniform(0, 2 * np.pi)
    line = start + np.cumsum(np.stack([np.cos(steps), np.sin(steps)], 1), axis=0) * length_px / 16
    normal = np.stack([-np.sin(steps), np.cos(steps)], 1) * width_px / 2
    return [np.concatenate([line + normal, (line - normal)[::-1]]).astype(np.float32)]


def _add_clutter(canvas: Canvas, num_items: int, size: tuple[float, float]) -> None:
    """Paints blobs and bands that hide no shape too much; ``size``: smallest and largest share of the shorter side."""
    rng, unit = canvas.rng, canvas.unit_px
    height, width = canvas.pixels.shape[:2]
    for _ in range(num_items):
        center, side = rng.uniform(0, 1, 2) * [width, height], unit * rng.uniform(*size)
        contours = (
            _stroke(rng, center, 8 * side, max(0.2 * side, 1.5)) if rng.random() < 0.5 else _blob(rng, center, side)
        )
        alpha = canvas.coverage(contours)
        if (alpha > 0.5).any() and canvas.leaves_others_visible(alpha):
            canvas.paint(alpha, 0.3 * side, relief_px=max(0.06 * side, 0.5))


def typical_material(label: int) -> Material:
    """The typical material of a class, where classes have one: one of five hues, plain or chequered."""
    num_hues = len(SHAPE_CLASSES) // 2
    return Material(CLOUDS if label < num_hues else CHECKS, label % num_hues / num_hues, (0.5, 0.9), (0.25, 0.4))


def _add_shapes(
    canvas: Canvas, labels: Sequence[int], size: tuple[float, float], spread: float, typical: float
) -> list[int]:
    """Places shapes where they and those behind them stay visible; returns the labels of those that found a place."""
    rng, unit = canvas.rng, canvas.unit_px
    height, width = canvas.pixels.shape[:2]
    placed = []
    for label in labels:
        for _ in range(PLACEMENT_TRIALS):
            side = unit * float(np.exp(rng.uniform(*np.log(size))))
            center = (0.5 + spread * rng.uniform(-0.5, 0.5, 2)) * [width, height]
            alpha = canvas.coverage(_place(rng, SHAPE_CLASSES[label], side, center))
            if alpha.sum() >= 0.6 * side**2 and canvas.leaves_others_visible(alpha):
                material = typical_material(label) if typical and rng.random() < typical else ANY_MATERIAL
                canvas.add_shape(
                    alpha, side * rng.uniform(*material.cells), max(side * rng.uniform(0.03, 0.1), 0.8), material
                )
                placed.append(label)
                break
    return placed


def _develop(canvas: Canvas) -> NDArray[np.uint8]:
    """Applies uneven light, exposure, blur and noise, as a camera would."""
    rng = canvas.rng
    height, width = canvas.pixels.shape[:2]
    ramp = np.add.outer(
        np.linspace(-0.5, 0.5, height) * canvas.light[1], np.linspace(-0.5, 0.5, width) * canvas.light[0]
    )
    light = (
        1 + rng.uniform(0, 0.7) * ramp + rng.uniform(0, 0.35) * (smooth_noise(rng, height, width, canvas.unit_px) - 0.5)
    )
    exposed = np.clip(canvas.pixels * light[..., None].astype(np.float32), 0, 1) ** rng.uniform(0.75, 1.25)
    blurred = cv2.GaussianBlur(exposed, (0, 0), rng.uniform(0.3, 0.8))
    noisy = blurred + rng.normal(0, rng.uniform(0.002, 0.03), blurred.shape)
    return np.round(np.clip(noisy, 0, 1) * 255).astype(np.uint8)


def render_scene(
    rng: np.random.Generator,
    height: int,
    width: int,
    labels: Sequence[int] | None = None,
    size: tuple[float, float] = (0.1, 0.36),
    spread: float = 1.0,
    typical: float = 0.0,
    clutter: int = MAX_CLUTTER,
) -> Scene:
    """Renders a picture.

    Args:
        rng: Source of randomness; the picture is a function of it and of the arguments.
        height: Rows, at least 16.
        width: Columns, at least 16.
        labels: Classes to place from back to front (one that finds no place is left out); None draws 3 to 9 at random.
        size: Smallest and largest square root of a shape's area, as a share of the picture's shorter side.
        spread: 1 places shapes anywhere, 0 in the middle.
        typical: Probability that a shape is of its class's typical material (:func:`typical_material`), as things in
            photographs often are; backgrounds are dull then. 0: material tells nothing, outlines alone do.
        clutter: Largest number of things behind the shapes that belong to no class; the smallest is 8 / 21 of it,
            rounded down.

    Returns:
        The picture, at least one shape on it.

    Raises:
        ValueError: If the picture is smaller than 16 pixels.
    """
    if min(height, width) < 16:
        raise ValueError(f'a scene must be at least 16 x 16 pixels, got {height} x {width}')
    if labels is None:
        labels = rng.integers(0, len(SHAPE_CLASSES), rng.integers(3, 10)).tolist()
    canvas = Canvas(rng, height, width, DULL if typical else ANY_MATERIAL)
    _add_clutter(canvas, int(rng.integers(8 * clutter // MAX_CLUTTER, clutter + 1)), (0.03, 0.22))
    placed: list[int] = []
    while not placed:
        placed = _add_shapes(canvas, labels, size, spread, typical)
    _add_clutter(canvas, int(rng.integers(0, min(5, clutter + 1))), (0.02, 0.07))
    return Scene(_develop(canvas), np.array(placed, np.int64), np.stack(canvas.visible))
