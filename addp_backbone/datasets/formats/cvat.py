"""CVAT for images 1.1: one XML file with all images; boxes, polygons, ellipses and masks in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from addp_backbone.datasets.formats.records import Records
from addp_backbone.datasets.formats.voc import parse_xml
from addp_backbone.files.run_length import encode_mask

ELLIPSE_CORNERS = 64


def read_cvat(source: Path, records: Records, names: list[str] | None) -> None:
    """Reads an export "CVAT for images 1.1". Shapes with one group id and label are parts of one object.

    Args:
        source: The XML file.
        records: Takes images and objects.
        names: The images (without ending) to read; None reads all.
    """
    try:
        root = parse_xml(source)
    except ValueError as error:
        records.error(source, '', str(error))
        return
    for image in root.iter('image'):
        name = image.get('name') or ''
        if names is not None and Path(name).stem not in names:
            continue
        try:
            size = int(image.get('width') or 0), int(image.get('height') or 0)
            image_id = records.add_image(name, size, source)
            _read_shapes(image, image_id, records, source)
        except (ValueError, TypeError, KeyError) as error:
            records.error(source, f'image {name!r}', f'{type(error).__name__}: {error}')


def _read_shapes(image: ElementTree.Element, image_id: int, records: Records, source: Path) -> None:
    groups: dict[Any, tuple[str, list[list[float]]]] = {}
    for number, shape in enumerate(image):
        label, group, polygon = (shape.get('label') or '').strip(), shape.get('group_id'), None
        if shape.tag == 'box':
            left, top, right, bottom = (float(shape.attrib[key]) for key in ('xtl', 'ytl', 'xbr', 'ybr'))
            records.add_object(image_id, label, (left, top, right - left, bottom - top))
        elif shape.tag == 'mask':
            records.add_object(image_id, label, code=_mask(shape.attrib, records.size(image_id)))
        elif shape.tag == 'polygon':
            polygon = [float(value) for point in shape.attrib['points'].split(';') for value in point.split(',')]
        elif shape.tag == 'ellipse':
            x, y, rx, ry = (float(shape.attrib[key]) for key in ('cx', 'cy', 'rx', 'ry'))
            angles = [2 * math.pi * step / ELLIPSE_CORNERS for step in range(ELLIPSE_CORNERS)]
            polygon = [v for a in angles for v in (x + rx * math.cos(a), y + ry * math.sin(a))]
        elif shape.tag in ('polyline', 'points', 'skeleton', 'cuboid'):
            detail = f'a {shape.tag} is no area: {label!r}'
            records.findings.warn('shape left out', source, f'image {image.get("name")!r}', detail)
        if polygon is not None:
            key = (label, group) if group not in (None, '', '0') else number
            groups.setdefault(key, (label, []))[1].append(polygon)
    for label, polygons in groups.values():
        records.add_object(image_id, label, polygons=polygons)


def _mask(attributes: Mapping[str, str], size: tuple[int, int]) -> dict[str, Any]:
    """CVAT's masks: runs of zeros and ones in turn, row by row within their box."""
    left, top, width, height = (int(float(attributes[key])) for key in ('left', 'top', 'width', 'height'))
    runs = [int(word) for word in attributes['rle'].split(',')]
    image_width, image_height = size
    if min(runs) < 0 or sum(runs) != width * height or min(left, top) < 0:
        raise ValueError(f'a mask covers {sum(runs)} pixels, wanted {width} x {height}')
    if left + width > image_width or top + height > image_height:
        raise ValueError('a mask reaches beyond the image')
    pixels = np.zeros((image_height, image_width), np.uint8)
    inside = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(height, width)
    pixels[top : top + height, left : left + width] = inside
    return encode_mask(pixels)
