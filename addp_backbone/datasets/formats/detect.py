"""Tells the format of annotations by what is there, and reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from addp_backbone.datasets.coco_file import CocoFile, from_records, read_coco
from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.formats.cvat import read_cvat
from addp_backbone.datasets.formats.label_studio import read_label_studio
from addp_backbone.datasets.formats.labelme import read_labelme
from addp_backbone.datasets.formats.records import Records, read_text
from addp_backbone.datasets.formats.voc import read_voc
from addp_backbone.datasets.formats.yolo import read_name_file, read_names, read_yolo

COCO, VOC, YOLO, LABELME, LABEL_STUDIO, CVAT = 'coco', 'voc', 'yolo', 'labelme', 'label-studio', 'cvat'
READERS: dict[str, Callable[[Path, Records, list[str] | None], None]] = {
    VOC: read_voc,
    YOLO: read_yolo,
    LABELME: read_labelme,
    LABEL_STUDIO: read_label_studio,
    CVAT: read_cvat,
}
FORMATS = (COCO, *READERS)


def detect_format(source: Path) -> str:
    """The format of a file or folder of annotations, one of :data:`FORMATS`.

    Raises:
        ValueError: If it is none of them; the message says what was found.
    """
    if source.is_dir():
        found = {ending: next(iter(sorted(source.rglob(f'*{ending}'))), None) for ending in ('.xml', '.json', '.txt')}
        if found['.xml']:
            return VOC
        if found['.json'] and '"shapes"' in found['.json'].read_text(encoding='utf-8-sig', errors='replace'):
            return LABELME
        if found['.txt']:
            return YOLO
        raise ValueError(f'{source}: a folder without XML (Pascal VOC), labelme JSON or text files (YOLO)')
    if not source.is_file():
        raise ValueError(f'{source}: no such file or folder of annotations')
    if source.suffix.lower() == '.xml':
        return CVAT
    if source.suffix.lower() == '.json':
        return LABEL_STUDIO if _is_list_of_tasks(source) else COCO
    raise ValueError(f'{source}: wanted JSON (COCO, Label Studio), XML (CVAT), or a folder (VOC, YOLO, labelme)')


def read_annotations(
    source: Path,
    image_dir: Path,
    findings: Findings,
    kind: str = 'auto',
    classes: Sequence[str] | None = None,
    names: list[str] | None = None,
) -> CocoFile | None:
    """Reads annotations of any format as a validated COCO file.

    Args:
        source: The file or folder.
        image_dir: The folder of images.
        findings: Takes what is found.
        kind: One of :data:`FORMATS`, or 'auto'.
        classes: Class names in the model's order; None: the file's order, or, where it has none, sorted by name.
        names: The images (without ending) that belong to the split; None: all. COCO files are read whole.

    Returns:
        The records, marked as mended if the source is no COCO file; None if it cannot be used.

    Raises:
        ValueError: If the format cannot be told, or YOLO's class names are not found.
    """
    kind = detect_format(source) if kind == 'auto' else kind
    if kind == COCO:
        return read_coco(source, findings, image_dir=image_dir)
    if kind == YOLO and classes is None:
        classes = read_names(source)
        if classes is None:
            raise ValueError(f'{source}: no data.yaml or classes.txt beside the labels; give --classes FILE')
    records = Records(source, image_dir, findings, classes)
    READERS[kind](source, records, names)
    coco = from_records(source, records.to_coco(), findings, image_dir=image_dir)
    if coco is not None:
        coco.mended = True
    return coco


def read_class_names(path: Path) -> list[str]:
    """Class names from text (a name a line), JSON (a list, or ``{"classes": [...]}``) or YOLO's ``data.yaml``.

    Raises:
        ValueError: If it is something else, or a name occurs twice.
    """
    if path.suffix == '.json':
        content = json.loads(read_text(path))
        names = content.get('classes') if isinstance(content, dict) else content
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f'{path}: wanted ["a", "b"] or {{"classes": ["a", "b"]}}')
    else:
        names = read_name_file(path)
    if len(set(names)) < len(names) or not names:
        raise ValueError(f'{path}: wanted class names that differ, got {names}')
    return names


def read_split_list(path: Path) -> list[str]:
    """Names of a split, a line each, without ending or folder; what follows a blank (VOC's flags) is passed over.

    Raises:
        ValueError: If it cannot be read or has no names.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    names = [_stem(line) for line in lines if line]
    if not names:
        raise ValueError(f'{path}: wanted a name of an image a line')
    return names


def _stem(line: str) -> str:
    """``a`` of ``a``, ``folder/a.jpg`` and ``a 1``."""
    words = line.rsplit(None, 1)
    if len(words) == 2 and words[1] in ('1', '-1', '0'):
        line = words[0]
    name = Path(line.replace('\\', '/')).name
    return name.rsplit('.', 1)[0] if '.' in name else name


def _is_list_of_tasks(source: Path) -> bool:
    try:
        content = json.loads(read_text(source))
    except (ValueError, RecursionError):
        return False
    return isinstance(content, list) and all(isinstance(task, dict) and 'data' in task for task in content)
