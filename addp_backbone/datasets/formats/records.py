"""Collects images and objects as COCO records; what every reader of a format fills."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from addp_backbone.datasets.file_names import FolderIndex
from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.segments import segmentation_area, segmentation_bounds, segmentation_problem
from addp_backbone.files.images import DECODING_ERRORS, ORIENTATION_TAG, TRANSPOSED_ORIENTATIONS, is_image_name

Polygon = list[float]


class Records:
    """COCO records that grow.

    Args:
        source: The annotations, for messages.
        image_dir: The folder of images.
        findings: Takes what is found.
        classes: Class names in the order of the model; None: those that occur, sorted.
    """

    def __init__(self, source: Path, image_dir: Path, findings: Findings, classes: Sequence[str] | None = None) -> None:
        self.source, self.image_dir, self.findings = source, image_dir, findings
        self.classes = None if classes is None else list(classes)
        self.images: list[dict[str, Any]] = []
        self._objects: list[tuple[str, dict[str, Any]]] = []
        self._files = FolderIndex(image_dir)

    def image_files(self, stems: set[str] | None = None) -> dict[str, str]:
        """Image files by their name without ending, relative to the folder.

        Args:
            stems: The names to look at; None: all.
        """
        found: dict[str, str] = {}
        for path in sorted(self.image_dir.rglob('*')):
            name = path.relative_to(self.image_dir).as_posix()
            stem = name.rsplit('.', 1)[0]
            if is_image_name(name) and (stems is None or stem in stems):
                if stem in found:
                    self.findings.error(
                        'images with one name', path, '', f'{found[stem]} has the same name but its ending'
                    )
                found.setdefault(stem, name)
        return found

    def add_image(self, name: str, size: tuple[int, int] | None, where: Path) -> int:
        """Adds an image.

        Args:
            name: As the annotations name it; a file of the same name without ending will do.
            size: Width and height as annotated, in pixels; None or 0 takes the file's.
            where: The annotation file, for messages.

        Returns:
            Its id.
        """
        found = self._files.find(name) or self._by_stem(name) or name
        if size is None or min(size) < 1:
            size = shown_size(self.image_dir / found)
            if size is None:
                self.findings.error('image missing', self.image_dir / found, f'image of {where.name}', 'cannot be read')
        width, height = size or (1, 1)
        image_id = len(self.images) + 1
        self.images.append(dict(id=image_id, file_name=found, width=width, height=height))
        return image_id

    def size(self, image_id: int) -> tuple[int, int]:
        """Width and height of an image that was added."""
        image = self.images[image_id - 1]
        return image['width'], image['height']

    def add_object(
        self,
        image_id: int,
        name: str,
        box: Sequence[float] | None = None,
        polygons: Sequence[Polygon] = (),
        crowd: bool = False,
        code: dict[str, Any] | None = None,
    ) -> None:
        """Adds an object by its box (x, y, width, height), its polygons or its run-length code, all in pixels.

        A box without area is kept as a crowd, so that the object counts, but is neither trained on nor scored.
        """
        if box is not None and min(box[2:]) == 0:  # a slip of the mouse
            crowd, place = True, f'image {self.images[image_id - 1]["file_name"]}'
            detail = f'{name!r} at {tuple(box[:2])} has no area: kept as a region that is neither trained on nor scored'
            self.findings.warn('box empty', self.source, place, detail)
        record: dict[str, Any] = dict(image_id=image_id, iscrowd=int(crowd))
        if polygons or code:
            record['segmentation'] = code or [list(polygon) for polygon in polygons]
        if box is None and polygons:
            xs = [x for polygon in polygons for x in polygon[::2]]
            ys = [y for polygon in polygons for y in polygon[1::2]]
            box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        if code is not None and segmentation_problem(code, *self.size(image_id)) is None:
            left, top, right, bottom = segmentation_bounds(code) or (0.0, 0.0, 0.0, 0.0)
            box = (left, top, right - left, bottom - top)
        if box is not None:
            record['bbox'] = [float(value) for value in box]
            mask = record.get('segmentation')
            record['area'] = segmentation_area(mask) if mask else max(box[2], 0.0) * max(box[3], 0.0)
        self._objects.append((name, record))

    def error(self, file: Path, record: str, detail: str) -> None:
        """Reports a record that cannot be read."""
        self.findings.error('annotation malformed', file, record, detail)

    def to_coco(self) -> dict[str, Any]:
        """The content of a COCO file."""
        classes = self.classes if self.classes is not None else sorted({name for name, _ in self._objects})
        unknown = sorted({name for name, _ in self._objects} - set(classes))
        for name in unknown:
            detail = f'class {name!r} is not among the classes {classes}'
            self.findings.error('class unknown', self.source, f'class {name!r}', detail)
        ids = {name: number for number, name in enumerate(classes, start=1)}
        annotations = [
            {'id': number, **record, 'category_id': ids[name]}
            for number, (name, record) in enumerate(self._objects, start=1)
            if name in ids
        ]
        categories = [dict(id=number, name=name) for name, number in ids.items()]
        return dict(images=self.images, annotations=annotations, categories=categories)

    def _by_stem(self, name: str) -> str | None:
        stem = Path(name.replace('\\', '/')).with_suffix('').as_posix()
        for start in range(stem.count('/') + 1):
            part = stem.split('/', start)[-1]
            matches = [p for p in (self.image_dir / part).parent.glob(f'{_escaped(Path(part).name)}.*') if p.is_file()]
            matches = [path for path in matches if is_image_name(path.name)]
            if len(matches) == 1:
                return matches[0].relative_to(self.image_dir).as_posix()
        return None


def shown_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image as a viewer shows it, from its header; None if it has none."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION_TAG) in TRANSPOSED_ORIENTATIONS and image.format != 'TIFF'
            return (image.height, image.width) if turned else (image.width, image.height)  # Pillow has turned TIFF
    except DECODING_ERRORS:
        return None


def read_text(path: Path) -> str:
    """A text file, with or without a byte order mark.

    Raises:
        ValueError: If it is no UTF-8.
    """
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: is no UTF-8 text: {error}') from error


def _escaped(name: str) -> str:
    """A name as a glob pattern that only matches itself."""
    return ''.join(f'[{character}]' if character in '*?[' else character for character in name)
