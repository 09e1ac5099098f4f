"""YOLO: a text file an image, with a line an object: class number and box or polygon, in shares of the image."""

from __future__ import annotations

from pathlib import Path

import yaml

from addp_backbone.datasets.formats.records import Records, read_text

NAME_FILES = ('data.yaml', 'data.yml', 'dataset.yaml', 'classes.txt', 'obj.names')


def read_yolo(source: Path, records: Records, names: list[str] | None) -> None:
    """Reads a folder of text files beside a folder of images.

    A line of five numbers is a box (class, centre x, centre y, width, height), a longer one a polygon (class, x, y, x,
    y, ...). An image without a file has no objects.

    Args:
        source: The folder of text files, with the sub-folders of the images.
        records: Takes images and objects; has the class names.
        names: The images (without ending) to read; None reads all.
    """
    assert records.classes is not None
    files = records.image_files(None if names is None else set(names))
    labels = {path.relative_to(source).with_suffix('').as_posix(): path for path in sorted(source.rglob('*.txt'))}
    for stem, name in files.items():
        path = labels.get(stem, source / f'{stem}.txt')
        image_id = records.add_image(name, None, path)
        if not path.is_file():
            continue
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if line.strip():
                try:
                    _read_line(line, image_id, records)
                except ValueError as error:
                    records.error(path, f'line {number}', str(error))
    ignored = {Path(name).stem for name in NAME_FILES}
    for stem, path in labels.items():
        if names is None and stem not in files and stem not in ignored:
            records.findings.warn('labels without image', path, '', f'no image of this name in {records.image_dir}')


def read_names(source: Path) -> list[str] | None:
    """Class names from ``data.yaml`` or a list, in the folder of the labels or up to two above; None if there is none.

    Raises:
        ValueError: If the file is there, but has no names.
    """
    for folder in (source, source.parent, source.parent.parent):
        for name in NAME_FILES:
            if (folder / name).is_file():
                return read_name_file(folder / name)
    return None


def read_name_file(path: Path) -> list[str]:
    """Class names from one file: ``names:`` of YAML (a list, or a name by number), or a name a line.

    Raises:
        ValueError: If it is something else.
    """
    text = read_text(path)
    if path.suffix not in ('.yaml', '.yml'):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f'{path}: is no YAML: {error}') from error
    names = content.get('names') if isinstance(content, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    # Aliases can make nested lists of a few bytes too long to be written out.
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
        kind = type(names).__name__
        raise ValueError(f'{path}: wanted names: [a, b] or names: {{0: a, 1: b}}, text or numbers, got a {kind}')
    return [str(name).strip() for name in names]


def _read_line(line: str, image_id: int, records: Records) -> None:
    words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f'{line[:80]!r} has words that are no numbers') from error
    classes = records.classes
    assert classes is not None
    if len(values) < 5 or (len(values) > 5 and len(values) % 2 == 0):
        raise ValueError(f'{len(values)} numbers, wanted class x y width height, or class x y x y x y ...')
    if not all(-0.01 <= value <= 1.01 for value in values[1:]):
        raise ValueError(f'{line[:80]!r}: wanted shares of the image from 0 to 1; pixels?')
    if values[0] != int(values[0]) or not 0 <= values[0] < len(classes):
        raise ValueError(f'class {words[0]}, there are 0 to {len(classes) - 1} ({", ".join(classes[:12])})')
    width, height = records.size(image_id)
    name = classes[int(values[0])]
    if len(values) == 5:
        x, y, w, h = values[1] * width, values[2] * height, values[3] * width, values[4] * height
        records.add_object(image_id, name, (x - w / 2, y - h / 2, w, h))
    else:
        scaled = [value * (height if index % 2 else width) for index, value in enumerate(values[1:])]
        records.add_object(image_id, name, polygons=[scaled])
