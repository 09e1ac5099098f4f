"""Curves as SVG: mean with standard deviation over something with numbers, one line for each backbone."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#444444')  # Okabe and Ito's
_WIDTH, _HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 20, 14, 42
_LEGEND_LINE = 20


@dataclass(frozen=True)
class Point:
    """A point of a curve.

    Attributes:
        x: Where.
        mean: The score.
        deviation: Its standard deviation; 0 draws no bar.
    """

    x: float
    mean: float
    deviation: float = 0.0


def line_chart(curves: Mapping[str, Sequence[Point]], x_label: str, y_label: str, logarithmic: bool = False) -> str:
    """Draws curves with a legend; names are escaped.

    Args:
        curves: Points of each, ascending in x.
        x_label: Under the axis.
        y_label: Above the axis.
        logarithmic: Whether x is.

    Returns:
        An ``<svg>`` element, '' without points.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ''
    ticks = sorted({point.x for point in points})
    low = min(point.mean - point.deviation for point in points)
    high = max(point.mean + point.deviation for point in points)
    step = _step(max(high - low, 1e-6))
    bottom, top = math.floor(low / step) * step, math.ceil(high / step) * step
    top += step * (top == bottom)

    def place_x(x: float) -> float:
        first, last, value = (
            (math.log(v) for v in (ticks[0], ticks[-1], x)) if logarithmic else (ticks[0], ticks[-1], x)
        )
        share = (value - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def place_y(y: float) -> float:
        return _TOP + (top - y) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for number in range(round((top - bottom) / step) + 1):
        value = bottom + number * step
        parts.append(f'<path d="M{_LEFT} {place_y(value):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 6, place_y(value) + 4, f'{value:g}', 'end'))
    parts += [_text(place_x(tick), _HEIGHT - _BOTTOM + 18, f'{tick:g}', 'middle') for tick in ticks]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label, 'middle'))
    parts.append(_text(_LEFT + 4, _TOP - 2, y_label, 'start'))
    for number, (name, curve) in enumerate(curves.items()):
        parts += _curve(name, curve, COLOURS[number % len(COLOURS)], place_x, place_y)
        y = _HEIGHT + _LEGEND_LINE * number + 12
        parts.append(f'<path d="M{_LEFT} {y - 4}h24" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="3"/>')
        parts.append(_text(_LEFT + 32, y, name, 'start'))
    height = _HEIGHT + _LEGEND_LINE * len(curves)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" aria-label="{html.escape(y_label)} by '
        f'{html.escape(x_label)}" font-size="12" fill="#333">' + ''.join(parts) + '</svg>'
    )


def _curve(
    name: str, curve: Sequence[Point], colour: str, place_x: Callable[[float], float], place_y: Callable[[float], float]
) -> list[str]:
    where = [(place_x(point.x), place_y(point.mean)) for point in curve]
    path = 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in where)
    parts = [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for point, (x, y) in zip(curve, where, strict=True):
        if point.deviation:
            ends = place_y(point.mean - point.deviation), place_y(point.mean + point.deviation)
            parts.append(f'<path d="M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}" stroke="{colour}"/>')
        title = html.escape(f'{name}: {point.x:g}: {point.mean:.1f}')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{title}</title></circle>')
    return parts


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _step(span: float) -> float:
    """A round distance between about five grid lines."""
    raw = span / 5
    power = 10 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
