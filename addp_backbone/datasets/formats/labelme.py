"""labelme: a JSON file an image, with polygons, rectangles and circles in pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from addp_backbone.datasets.formats.records import Polygon, Records, read_text

CIRCLE_CORNERS = 64


def read_labelme(source: Path, records: Records, names: list[str] | None) -> None:
    """Reads a folder of JSON files. Shapes of one label with one group id are parts of one object.

    Args:
        source: The folder.
        records: Takes images and objects.
        names: The names (without ending) to read; None reads all.
    """
    for path in sorted(source.rglob('*.json')):
        if names is not None and path.stem not in names:
            continue
        try:
            content = json.loads(read_text(path))
            if not isinstance(content, dict) or 'shapes' not in content:
                continue
            size = (int(content.get('imageWidth') or 0), int(content.get('imageHeight') or 0))
            image_id = records.add_image(str(content.get('imagePath') or path.stem), size, path)
            _read_shapes(content['shapes'], image_id, records, path)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            records.error(path, '', f'is no file of labelme: {type(error).__name__}: {error}')


def _read_shapes(shapes: list[dict[str, Any]], image_id: int, records: Records, path: Path) -> None:
    groups: dict[Any, tuple[str, list[Polygon]]] = {}
    for number, shape in enumerate(shapes):
        label, group = str(shape['label']).strip(), shape.get('group_id')
        polygon = _polygon(str(shape.get('shape_type') or 'polygon'), shape['points'])
        if polygon is None:
            kind = shape.get('shape_type')
            records.findings.warn('shape left out', path, f'shape {number}', f'a {kind} is no area: {label!r}')
            continue
        key = (label, group) if group is not None else number
        groups.setdefault(key, (label, []))[1].append(polygon)
    for label, polygons in groups.values():
        records.add_object(image_id, label, polygons=polygons)


def _polygon(kind: str, points: list[list[float]]) -> Polygon | None:
    corners = [(float(x), float(y)) for x, y in points]
    if kind == 'rectangle' and len(corners) == 2:
        (x0, y0), (x1, y1) = corners
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    elif kind == 'circle':
        (x, y), edge = corners
        radius = math.dist((x, y), edge)
        angles = [2 * math.pi * step / CIRCLE_CORNERS for step in range(CIRCLE_CORNERS)]
        corners = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    elif kind not in ('polygon', 'rectangle') or len(corners) < 3:
        return None
    return [value for corner in corners for value in corner]
