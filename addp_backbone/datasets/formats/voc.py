"""Pascal VOC: a folder of XML files, one an image, with boxes (and, of some exporters, polygons)."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from addp_backbone.datasets.formats.records import Records


def read_voc(source: Path, records: Records, names: list[str] | None) -> None:
    """Reads a folder of XML files.

    Corners are taken as pixel coordinates from 0, right and bottom exclusive, as labelImg, CVAT and Roboflow write
    them; in files of the VOC challenge itself (``<database>The VOC...``) they count from 1 and are inclusive. Objects
    marked as difficult are neither trained on nor scored, as in the challenge.

    Args:
        source: The folder.
        records: Takes images and objects.
        names: The names (without ending) to read; None reads all.
    """
    paths = sorted(source.rglob('*.xml'))
    by_stem = {path.stem: path for path in paths}
    if names is not None:
        for name in names:
            if name not in by_stem:
                records.findings.error(
                    'annotation missing', source / f'{name}.xml', '', 'is in the list, but is no file'
                )
        paths = [by_stem[name] for name in names if name in by_stem]
    num_difficult = 0
    for path in paths:
        try:
            root = parse_xml(path)
        except ValueError as error:
            records.error(path, '', str(error))
            continue
        name = root.findtext('filename') or f'{path.stem}.jpg'
        if Path(name.replace('\\', '/')).stem != path.stem:  # a copied or renamed file: its own name counts
            name = path.stem
        image_id = records.add_image(name, _size(root), path)
        for number, item in enumerate(root.iter('object')):
            try:
                num_difficult += _read_object(item, image_id, records, root.findtext('source/database') or '')
            except (TypeError, ValueError) as error:
                records.error(path, f'object {number}', f'{error}; wanted a name and a bndbox of four numbers')
    if num_difficult:
        detail = f'{num_difficult} objects are marked as difficult: not trained on and not scored'
        records.findings.warn('difficult objects', source, '', detail)


def parse_xml(path: Path) -> ElementTree.Element:
    """Parses an XML file that defines no entities, which could expand without bound.

    Raises:
        ValueError: If it is none, or is no XML.
    """
    content = path.read_bytes()
    if b'<!DOCTYPE' in content or b'<!ENTITY' in content:
        raise ValueError('defines a document type or entities, which annotations have no use for')
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f'is no XML: {error}') from error


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        return int(float(root.findtext('size/width') or 0)), int(float(root.findtext('size/height') or 0))
    except (ValueError, OverflowError):
        return None


def _read_object(item: ElementTree.Element, image_id: int, records: Records, database: str) -> bool:
    """Adds an object; whether it is marked as difficult."""
    name = (item.findtext('name') or '').strip()
    if not name:
        raise ValueError('has no name')
    corners = [float(item.findtext(f'bndbox/{key}') or 'nan') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
    if database.startswith('The VOC'):
        corners[:2] = [corners[0] - 1, corners[1] - 1]
    left, top, right, bottom = corners
    if not (left <= right and top <= bottom):  # NaN compares as False
        raise ValueError(f'has corners {corners}')
    polygons = []
    polygon = item.find('polygon')
    if polygon is not None:
        pairs = zip(_numbered(polygon, 'x'), _numbered(polygon, 'y'), strict=True)
        polygons = [[value for pair in pairs for value in pair]]
    difficult = (item.findtext('difficult') or '0').strip() == '1'
    box = (left, top, right - left, bottom - top)
    records.add_object(image_id, name, box, polygons if all(len(p) >= 6 for p in polygons) else (), crowd=difficult)
    return difficult


def _numbered(node: ElementTree.Element, axis: str) -> list[float]:
    """The values of <x1>, <x2>, ... in order."""
    values = {int(child.tag[1:]): float(child.text or '') for child in node if child.tag[:1] == axis}
    return [values[number] for number in sorted(values)]
