"""Reads COCO files as they really come: one validation for checks, training and evaluation.

Ids may be numbers or text, in any order and from 0; objects belong to images and classes by id, classes to a model by
name. What exporters are known to write otherwise is mended where only one thing can be meant, and reported; all else
is an error that names file and record.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from addp_backbone.datasets.file_names import FolderIndex, file_name_problem
from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.segments import (
    segmentation_area,
    segmentation_bounds,
    segmentation_problem,
    valid_polygons,
)
from addp_backbone.runtime.config_checks import LaunchError

Identifier = int | str
Record = dict[str, Any]
UNUSABLE = 'annotation file cannot be used'
MAX_AREA = 1e15  # pixels; JSON's integers may be longer than any float
MENDED = 'mended: '  # begins the kind of a finding about something that is not as COCO has it, but clear


class CocoError(LaunchError):
    """A COCO file has errors; the message has the first of them."""


@dataclass
class CocoFile:
    """A COCO file with validated records.

    Attributes:
        path: The JSON.
        categories: Names by id, in the file's order.
        images: Records with ``id``, ``file_name``, ``width``, ``height`` and whatever else the file has.
        annotations: Records with ``id``, ``image_id``, ``category_id``, ``bbox`` (four finite numbers), ``area`` (a
            finite number), ``iscrowd`` (0 or 1) and, if the object has a mask that can be decoded, ``segmentation``.
        mended: Whether a record differs from the file's.
    """

    path: Path
    categories: dict[Identifier, str] = field(default_factory=dict)
    images: list[Record] = field(default_factory=list)
    annotations: list[Record] = field(default_factory=list)
    mended: bool = False

    def to_json(self) -> str:
        """The file as COCO JSON."""
        categories = [dict(id=key, name=name) for key, name in self.categories.items()]
        return json.dumps(dict(images=self.images, annotations=self.annotations, categories=categories))

    def class_ids(self, classes: list[str] | tuple[str, ...]) -> list[Identifier]:
        """The category id of each class, found by name.

        Raises:
            CocoError: If a class is not among the categories, or a category that has objects is not among the classes;
                the message has both lists.
        """
        ids = {name: key for key, name in self.categories.items()}
        used = {record['category_id'] for record in self.annotations}
        missing = [name for name in classes if name not in ids]
        left_over = [name for key, name in self.categories.items() if name not in set(classes) and key in used]
        if missing or left_over:
            raise CocoError(
                f'the classes of the config are not those of {self.path}. Not in the file: {_some(missing)}. Not in '
                f'the config, but with objects: {_some(left_over)}. Classes of the config ({len(classes)}): '
                f'{_some(classes)}; categories of the file ({len(ids)}): {_some(ids)}. Write a config for the file '
                'with tools/new_dataset.py, or set metainfo.classes of every data set and num_classes of every head'
            )
        return [ids[name] for name in classes]


def load_coco(path: str | Path, with_annotations: bool = True) -> CocoFile:
    """Reads a COCO file for training or evaluation.

    Args:
        path: The JSON.
        with_annotations: Whether it must have annotations; files of test sets have none.

    Raises:
        CocoError: If it has errors; :func:`addp_backbone.datasets.coco.check_detection` lists all.
    """
    findings = Findings()
    coco = read_coco(Path(path), findings, with_annotations)
    errors = [str(entry) for entry in findings.entries if entry.level == 'error']
    if errors or coco is None:
        more = f'\n  ... and {len(errors) - 5} more' if len(errors) > 5 else ''
        listed = '\n  '.join(errors[:5])
        raise CocoError(f'{path} has {len(errors)} errors (tools/new_dataset.py lists all):\n  {listed}{more}')
    return coco


def read_coco(
    path: Path, findings: Findings, with_annotations: bool = True, image_dir: Path | None = None
) -> CocoFile | None:
    """Reads a COCO file and validates every record.

    Args:
        path: The JSON.
        findings: Takes errors, and what was mended as warnings.
        with_annotations: Whether annotations are wanted.
        image_dir: The folder in which to look for files that are not found by the name as it is written; None does
            not look.

    Returns:
        The valid records; None if the file's form is wrong.
    """
    content = _load_json(path, findings)
    if content is None:
        return None
    return from_records(path, content, findings, with_annotations, image_dir)


def from_records(
    path: Path, content: Any, findings: Findings, with_annotations: bool = True, image_dir: Path | None = None
) -> CocoFile | None:
    """Validates the content of a COCO file; arguments and result as for :func:`read_coco`."""
    wanted = ('images', 'annotations', 'categories') if with_annotations else ('images', 'categories')
    for key in wanted:
        value = content.get(key) if isinstance(content, dict) else None
        if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
            hint = _form_hint(content, key)
            findings.error(
                UNUSABLE, path, '', f'has no list of objects {key!r}: wanted the COCO instances format{hint}'
            )
            return None
    annotations = content.get('annotations') or []
    if not content['images'] or (with_annotations and not annotations):
        hint = _form_hint(content, 'annotations') if content['images'] else ''
        findings.error(UNUSABLE, path, '', f'has no images or no annotations{hint}')
        return None
    reader = _Reader(path, findings, FolderIndex(image_dir) if image_dir else None)
    used = {key for key in (record.get('category_id') for record in annotations) if isinstance(key, (int, str))}
    reader.read_categories(content['categories'], used)
    reader.read_images(content['images'])
    reader.read_annotations(annotations)
    return reader.coco


def _load_json(path: Path, findings: Findings) -> Any:
    """The content of a JSON file; None, with a finding, if it cannot be read."""
    try:
        raw = path.read_bytes()
        content = json.loads(raw.decode('utf-8-sig'))
    except UnicodeDecodeError as error:
        findings.error(UNUSABLE, path, '', f'is no UTF-8 text: {error}; save it as UTF-8')
    except RecursionError:
        findings.error(UNUSABLE, path, '', 'is nested too deeply to be a COCO file')
    except (OSError, ValueError) as error:
        findings.error(UNUSABLE, path, '', f'cannot be read as JSON: {error}')
    else:
        return content
    return None


class _Reader:
    """Validates records one after the other; what is good goes into ``coco``."""

    def __init__(self, path: Path, findings: Findings, files: FolderIndex | None) -> None:
        self.coco = CocoFile(path)
        self.files = files
        self.findings = findings
        self.images: dict[Identifier, Record] = {}
        self.image_texts: dict[str, Identifier] = {}
        self.category_texts: dict[str, Identifier] = {}

    def error(self, kind: str, record: str, detail: str) -> None:
        self.findings.error(kind, self.coco.path, record, detail)

    def mend(self, kind: str, record: str, detail: str) -> None:
        self.coco.mended = True
        self.findings.warn(MENDED + kind, self.coco.path, record, detail)

    def read_categories(self, records: list[Record], used: set[Identifier]) -> None:
        """Classes by id; an unused one that only repeats a name, or names the whole export, is left out."""
        categories = self.coco.categories
        for position, record in enumerate(records):
            if self._lacks(record, ('id', 'name'), f'categories[{position}]'):
                continue
            key, name = self._identifier(record['id'], f'categories[{position}]', 'id'), record['name']
            if key is None:
                continue
            label = f'category {key}'
            if isinstance(name, (int, float)) and not isinstance(name, bool):
                self.mend('class name is a number', label, f'{name!r} is taken as text')
                name = str(name)
            if not isinstance(name, str) or not name.strip():
                self.error('class name', label, f'name {name!r}, wanted text')
                continue
            if not _is_text(name):
                self.error('class name', label, f'name {ascii(name)[:80]} holds half a character (a lone surrogate)')
                continue
            if name != name.strip():
                self.mend('class name with blanks around it', label, f'{name!r} is taken as {name.strip()!r}')
                name = name.strip()
            if key in categories:
                self.error('category twice', label, f'id or name {name!r} occurs before')
            elif name in categories.values():
                other = next(k for k, n in categories.items() if n == name)
                if key in used and other in used:
                    self.error('category twice', label, f'id or name {name!r} occurs before')
                    continue
                dropped = key if key not in used else other
                self.mend('class name twice', f'category {dropped}', f'{name!r} has no objects here and is left out')
                if dropped == other:
                    del categories[other]
                    categories[key] = name
            else:
                categories[key] = name
        self._drop_dummy(records, used)
        if not categories:
            self.error(UNUSABLE, '', 'has no categories')
        self.category_texts = {str(key): key for key in categories}

    def _drop_dummy(self, records: list[Record], used: set[Identifier]) -> None:
        """Roboflow lists the export's name as a first category without objects, of which all others are a part."""
        first, others = records[0] if records else {}, records[1:]
        key, name = first.get('id'), first.get('name')
        is_dummy = (
            others and all(r.get('supercategory') == name for r in others) and first.get('supercategory') == 'none'
        )
        if is_dummy and isinstance(key, (int, str)) and key not in used and self.coco.categories.get(key) == name:
            del self.coco.categories[key]
            self.mend('dummy category', f'category {key}', f'{name!r} has no objects and groups the others: left out')

    def read_images(self, records: list[Record]) -> None:
        """Images by id."""
        for position, record in enumerate(records):
            place = f'images[{position}]'
            if self._lacks(record, ('id', 'file_name', 'width', 'height'), place):
                continue
            key = self._identifier(record['id'], place, 'id')
            if key is None:
                continue
            name = self._file_name(f'image {key}', record['file_name'])
            if name is None:
                continue
            sides = {}
            for side in ('width', 'height'):
                value = _whole_number(record[side])
                if value is None or value < 1:
                    self.error('image size', f'image {key} ({name})', f'{side} {record[side]!r}, wanted pixels')
                    break
                if type(record[side]) is not int:
                    self.mend(f'{side} is no integer', f'image {key} ({name})', f'{record[side]!r} is taken as {value}')
                sides[side] = value
            if len(sides) < 2:
                continue
            if key in self.images:
                self.error('image id twice', f'image {key}', f'{name} and {self.images[key]["file_name"]}')
                continue
            self.images[key] = {**record, 'id': key, 'file_name': name, **sides}
        self.coco.images = list(self.images.values())
        self.image_texts = {str(key): key for key in self.images}

    def _file_name(self, label: str, name: Any) -> str | None:
        found = self.files.find(name) if self.files and isinstance(name, str) else None
        problem = None if found else file_name_problem(name)
        if problem:
            self.error('file name', label, f'file_name {str(name)[:200]!r} {problem}')
            return None
        if found and found != name:
            self.mend('file name', label, f'{name!r} is taken as {found!r}')
        return found or name

    def read_annotations(self, records: list[Record]) -> None:
        """Objects, with their image and class found."""
        seen: set[Identifier] = set()
        for position, record in enumerate(records):
            if 'id' not in record:
                record = {**record, 'id': f'position {position}'}
                self.mend('annotation without id', f'annotations[{position}]', f'is named {record["id"]!r}')
            if self._lacks(record, ('image_id', 'category_id'), f'annotations[{position}]'):
                continue
            key = self._identifier(record['id'], f'annotations[{position}]', 'id')
            if key is None:
                continue
            label = f'annotation {key}'
            if key in seen:
                self.error('annotation id twice', label, 'ids must be unique')
                continue
            seen.add(key)
            complete = self._read_object(label, {**record, 'id': key})
            if complete is not None:
                self.coco.annotations.append(complete)

    def _read_object(self, label: str, record: Record) -> Record | None:
        category = self._resolve(record['category_id'], self.coco.categories, self.category_texts, label, 'category_id')
        if category is None:
            known = sorted(self.coco.categories, key=str)
            shown = f'category_id {record["category_id"]!r}, there are {known[:20]}'
            self.error('category id outside the classes', label, shown)
        image_id = self._resolve(record['image_id'], self.images, self.image_texts, label, 'image_id')
        if image_id is None:
            self.error('image id unknown', label, f'image_id {record["image_id"]!r} is not among the images')
        if category is None or image_id is None:
            return None
        image = self.images[image_id]
        where = f'{label} of image {image["id"]} ({image["file_name"]})'
        record.update(category_id=category, image_id=image_id)
        if not (self._read_crowd(where, record) and self._read_mask(where, record, image)):
            return None
        return record if self._read_box(where, record, image) and self._read_area(where, record) else None

    def _read_crowd(self, where: str, record: Record) -> bool:
        flags = {}
        for key in ('iscrowd', 'ignore'):  # the second is of converters from VOC, for difficult objects
            value = record.pop(key, None)
            flag = 0 if value is None else _whole_number(value) if not isinstance(value, bool) else int(value)
            if flag not in (0, 1):
                self.error('crowd flag', where, f'{key} {value!r}, wanted 0 or 1')
                return False
            flags[key] = flag
        if flags['ignore'] and not flags['iscrowd']:
            self.mend('object marked as ignored', where, 'taken as crowd: neither trained on nor scored')
        record['iscrowd'] = max(flags.values())
        return True

    def _read_mask(self, where: str, record: Record, image: Record) -> bool:
        mask = record.get('segmentation')
        if not mask or mask == [[]]:
            record.pop('segmentation', None)
            return True
        problem = segmentation_problem(mask, image['width'], image['height'])
        if problem:
            self.error('mask malformed', where, problem)
        elif isinstance(mask, list) and len(valid_polygons(mask)) < len(mask):
            num_short = len(mask) - len(valid_polygons(mask))
            detail = f'{num_short} of {len(mask)} polygons have fewer than three corners'
            self.findings.warn('polygon ignored', self.coco.path, where, detail)
            record['segmentation'] = valid_polygons(mask)
        return problem is None

    def _read_box(self, where: str, record: Record, image: Record) -> bool:
        box, mask = record.get('bbox'), record.get('segmentation')
        if box is None and mask:
            left, top, right, bottom = segmentation_bounds(mask) or (0.0, 0.0, 0.0, 0.0)
            record['bbox'] = [left, top, right - left, bottom - top]
            self.mend('box missing', where, 'taken from the mask')
            return True
        if box is None:
            self.error('key missing', where, 'has neither bbox nor segmentation')
            return False
        numbers = isinstance(box, list) and len(box) == 4 and set(map(type, box)) <= {int, float}
        farthest = 10 * max(image['width'], image['height']) + 1000
        if not numbers or not all(-farthest <= value <= farthest for value in box):  # NaN compares as False
            self.error('box malformed', where, f'bbox {str(box)[:120]}, wanted [x, y, width, height] in pixels')
            return False
        return True

    def _read_area(self, where: str, record: Record) -> bool:
        area = record.get('area')
        if isinstance(area, (int, float)) and not isinstance(area, bool) and 0 < area < MAX_AREA:
            return True
        mask, (_, _, width, height) = record.get('segmentation'), record['bbox']
        record['area'] = segmentation_area(mask) if mask else max(width, 0) * max(height, 0)
        if record['area'] > 0:  # an empty box is a finding of its own
            source = 'mask' if mask else 'box'
            self.mend('area missing', where, f'area {area!r}, taken from the {source}: {record["area"]:g}')
        return True

    def _lacks(self, record: Record, names: tuple[str, ...], place: str) -> bool:
        missing = [name for name in names if name not in record]
        if missing:
            self.error('key missing', place, f'has no {", ".join(missing)}')
        return bool(missing)

    def _identifier(self, value: Any, place: str, name: str) -> Identifier | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            self.error(
                'id malformed', place, f'{name} {str(value)[:80]!r} is a {type(value).__name__}, wanted a number'
            )
            return None
        return value

    def _resolve(
        self, value: Any, known: dict[Identifier, Any], texts: dict[str, Identifier], label: str, name: str
    ) -> Identifier | None:
        """The id that is meant: the same, or the same written as text."""
        if isinstance(value, (int, str, float)) and not isinstance(value, bool):
            if value in known:
                return int(value) if isinstance(value, float) else value
            found = texts.get(str(value))
            if found is not None:
                self.mend(f'{name} is text', label, f'{name} {value!r} is taken as {found!r}')
            return found
        return None


def _is_text(name: str) -> bool:
    """Whether it can be written: JSON can hold halves of characters, which no log and no config takes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _whole_number(value: Any) -> int | None:
    """An integer, also if it is written as text or with a point; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value) if not isinstance(value, int) else value
        return int(number) if number == int(number) else None
    except (ValueError, OverflowError):
        return None


def _form_hint(content: Any, key: str) -> str:
    if isinstance(content, list):
        return '; the file is a list, as of detection results or Label Studio'
    if isinstance(content, dict) and key == 'annotations' and 'images' in content:
        return (
            '; without annotations there is nothing to train on or to compare with (a test set? tools/test.py '
            '--format-only writes predictions for it)'
        )
    if isinstance(content, dict) and 'shapes' in content:
        return "; it looks like labelme's, of which a folder is wanted"
    return ''


def _some(names: Any, limit: int = 12) -> str:
    names = [str(name) for name in names]
    return (', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')) or 'none'
