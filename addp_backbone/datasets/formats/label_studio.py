"""Label Studio: one JSON file with all tasks; boxes and polygons in per cent of the image."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from addp_backbone.datasets.file_names import file_name_problem
from addp_backbone.datasets.formats.records import Records, read_text

KINDS = ('rectanglelabels', 'polygonlabels', 'ellipselabels')
ELLIPSE_CORNERS = 64


def read_label_studio(source: Path, records: Records, names: list[str] | None) -> None:
    """Reads an export in the format "JSON".

    Of a task with several annotations the first that was not cancelled counts. Turned rectangles become polygons.

    Args:
        source: The JSON file.
        records: Takes images and objects.
        names: The images (without ending) to read; None reads all.
    """
    try:
        tasks = json.loads(read_text(source))
    except (ValueError, RecursionError) as error:
        records.error(source, '', f'cannot be read as JSON: {error}')
        return
    for number, task in enumerate(tasks):
        try:
            results = _results(task)
            name = _image_name(task, records)
            if names is not None and Path(name).stem not in names:
                continue
            first = next(iter(results), {})
            size = int(first.get('original_width') or 0), int(first.get('original_height') or 0)
            image_id = records.add_image(name, size, source)
            for result in results:
                _read_result(result, image_id, records, source, f'task {number}')
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            records.error(source, f'task {number}', f'is no task of Label Studio: {type(error).__name__}: {error}')


def _results(task: dict[str, Any]) -> list[dict[str, Any]]:
    answers = task.get('annotations', task.get('completions')) or []
    valid = [answer for answer in answers if not answer.get('was_cancelled')]
    return list(valid[0]['result']) if valid else []


def _image_name(task: dict[str, Any], records: Records) -> str:
    """The file that a task's address means: the upload's name, with or without the prefix that uploading adds."""
    address = next(value for value in task['data'].values() if isinstance(value, str))
    parsed = urlparse(address)
    local = parse_qs(parsed.query).get('d')
    name = PurePosixPath(unquote(local[0] if local else parsed.path)).name
    plain = re.sub(r'^[0-9a-f]{8}-', '', name)
    if problem := file_name_problem(name):  # an image within the JSON, for instance
        raise ValueError(f'the address {address[:80]!r} names no file: {problem}')
    return name if plain == name or (records.image_dir / name).is_file() else plain


def _read_result(result: dict[str, Any], image_id: int, records: Records, source: Path, where: str) -> None:
    kind, value = str(result.get('type')), result.get('value') or {}
    if kind not in KINDS:
        if kind.endswith('labels'):
            detail = f'type {kind} is not read; export brushes as COCO'
            records.findings.error('annotation not read', source, where, detail)
        return
    width, height = records.size(image_id)
    names = value.get(kind) or []
    if len(names) != 1:
        raise ValueError(f'a region has the labels {names}, wanted one')
    if kind == 'polygonlabels':
        corners = [(float(x), float(y)) for x, y in value['points']]
    elif kind == 'ellipselabels':
        angles = [2 * math.pi * step / ELLIPSE_CORNERS for step in range(ELLIPSE_CORNERS)]
        rx, ry = value['radiusX'], value['radiusY']
        corners = [(value['x'] + rx * math.cos(a), value['y'] + ry * math.sin(a)) for a in angles]
    else:
        x, y, w, h = (float(value[key]) for key in ('x', 'y', 'width', 'height'))
        if not value.get('rotation'):
            box = (x * width / 100, y * height / 100, w * width / 100, h * height / 100)
            records.add_object(image_id, str(names[0]).strip(), box)
            return
        corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    pixels = [(x * width / 100, y * height / 100) for x, y in corners]
    if value.get('rotation'):
        pixels = _turned(pixels, float(value['rotation']), kind, value, (width, height))
    records.add_object(image_id, str(names[0]).strip(), polygons=[[v for corner in pixels for v in corner]])


def _turned(
    pixels: list[tuple[float, float]], degrees: float, kind: str, value: dict[str, Any], size: tuple[int, int]
) -> list[tuple[float, float]]:
    """Turns corners clockwise about the upper left corner of a rectangle, or the centre of an ellipse."""
    angle = math.radians(degrees)
    x0, y0 = (value['x'] * size[0] / 100, value['y'] * size[1] / 100) if kind == 'ellipselabels' else pixels[0]
    cosine, sine = math.cos(angle), math.sin(angle)
    return [(x0 + (x - x0) * cosine - (y - y0) * sine, y0 + (x - x0) * sine + (y - y0) * cosine) for x, y in pixels]
