"""The folder of a prediction: a line for each image as it is done, from which a killed run goes on, and one JSON.

``predictions.jsonl`` begins with the settings; each further line is an image's record and the state of its file. A line
that was cut is passed over. ``predictions.json`` is written from it when the run ends, whole or not at all, and so are
``coco_results.json`` and ``predictions.csv`` where they are wanted.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from addp_backbone.files.atomic import remove_abandoned_parts, replace_file
from addp_backbone.predict.coco_ids import table_rows
from addp_backbone.predict.inputs import record_key
from addp_backbone.predict.sources import LABELME_FOLDER, LINES_FILE, RECORDS_FILE, RESULT_FOLDERS

Record = dict[str, Any]
COCO_FILE, TABLE_FILE = 'coco_results.json', 'predictions.csv'
COCO_KEY = 'coco'  # of a line: the image's results at full precision
COLUMNS = (
    'file_name',
    'frame',
    'time_s',
    'category',
    'label',
    'score',
    'x',
    'y',
    'width',
    'height',
    'fraction',
    'error',
)


class ResultFolder:
    """Takes the results of a prediction.

    Args:
        folder: Made if it is missing.
        settings: What the results depend on besides the images; JSON types. ``predictions.json`` begins with them,
            except for those in ``unshown``.
        resume: Whether the records of an earlier run with the same settings are kept; otherwise they are removed.
        unshown: Names of settings that only tell whether a run may go on.

    Raises:
        ValueError: If the earlier run had other settings.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], resume: bool = False, unshown: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.settings, self.unshown = folder, json.loads(json.dumps(settings)), unshown
        self.lines, self.summary = folder / LINES_FILE, folder / RECORDS_FILE
        for child in ('', *RESULT_FOLDERS):
            remove_abandoned_parts(folder / child)
        kept = [json.dumps(self.settings)]
        if resume and self.lines.is_file():
            kept += [line for line, _ in self._read_lines()]
        replace_file(self.lines, '\n'.join(kept) + '\n')
        for name in (RECORDS_FILE, COCO_FILE, TABLE_FILE):
            (folder / name).unlink(missing_ok=True)

    def done(self) -> dict[str, str]:
        """Key -> name of the images that have a result, and whose files are still as they were then."""
        return {
            record_key(record): record['name']
            for _, record in self._read_lines()
            if 'error' not in record and record.get('file') == file_state(Path(record['file_name']))
        }

    def add(self, record: Record, files: Mapping[str, bytes]) -> None:
        """Writes the result of one image.

        Args:
            record: With ``file_name`` and, unless there is an ``error``, ``name``.
            files: Sub-folder -> content of a PNG, or of JSON in :data:`LABELME_FOLDER`.
        """
        for child, content in files.items():
            ending = '.json' if child == LABELME_FOLDER else '.png'
            replace_file(self.folder / child / f'{record["name"]}{ending}', content)
        line = {**record, 'file': file_state(Path(record['file_name']))}
        with self.lines.open('a', encoding='utf-8') as file:  # opened anew: an image takes far longer than that
            file.write(json.dumps(line) + '\n')

    def image_ids(self) -> dict[str, Any]:
        """Key -> id of the images that got one for COCO results."""
        return {record_key(r): r['image_id'] for _, r in self._read_lines() if 'image_id' in r}

    def finish(self, order: Sequence[str], formats: Sequence[str] = ('json',)) -> None:
        """Writes what is made of all records; images that are not in ``order`` stand behind the others.

        Args:
            order: Files, URLs and videos in the order that is wanted; the frames of a video come in theirs.
            formats: 'coco' adds ``coco_results.json``, 'csv' ``predictions.csv``; ``predictions.json`` is always made.
        """
        rank = {source: position for position, source in enumerate(order)}
        latest, ranks = {}, {}
        for number, (_, record) in enumerate(self._read_lines()):
            key = record_key(record)
            latest[key] = number
            ranks[key] = (rank.get(record['file_name'], len(rank)), record.get('frame', -1))
        wanted = sorted(latest, key=ranks.__getitem__)
        numbers = [latest[key] for key in wanted]
        if 'coco' in formats:
            results = (one for record in self._records(numbers) for one in record.get(COCO_KEY, ()))
            replace_file(self.folder / COCO_FILE, json_pieces(results, '[', ']'))
        if 'csv' in formats:
            rows = (row for record in self._records(numbers) for row in table_rows(record))
            replace_file(self.folder / TABLE_FILE, csv_pieces(rows))
        shown = {name: value for name, value in self.settings.items() if name not in self.unshown}
        records = (
            {name: value for name, value in record.items() if name not in ('file', COCO_KEY)}
            for record in self._records(numbers)
        )
        replace_file(self.summary, json_pieces(records, json.dumps(shown)[:-1] + ', "images": [', ']}'))

    def _records(self, numbers: list[int]) -> Iterator[Record]:
        """The records of lines, one in memory at a time."""
        with self.lines.open('rb') as file:
            offsets = [offset for offset, _, _ in _valid_lines(file)]
            for number in numbers:
                file.seek(offsets[number])
                yield json.loads(file.readline())

    def _read_lines(self) -> Iterator[tuple[str, Record]]:
        """The lines of images, as they are and read.

        Raises:
            ValueError: If the file is of a run with other settings.
        """
        with self.lines.open('rb') as file:
            before = _parsed(file.readline())
            if before != self.settings:
                changed = [
                    f'{name}: {(before or {}).get(name)!r}, now {self.settings.get(name)!r}'
                    for name in sorted({*(before or {}), *self.settings})
                    if (before or {}).get(name) != self.settings.get(name)
                ]
                raise ValueError(
                    f'{self.folder} holds predictions of other settings ({"; ".join(changed)}): give another folder, '
                    'or leave --resume out to begin anew'
                )
            file.seek(0)
            for _, line, record in _valid_lines(file):
                yield line, record


def json_pieces(values: Iterable[Any], begin: str, end: str) -> Iterator[bytes]:
    """A JSON list of values, value after value, between two texts."""
    yield begin.encode()
    for index, value in enumerate(values):
        yield ((', ' if index else '') + json.dumps(value)).encode()
    yield end.encode()


def csv_pieces(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """A table with a header in UTF-8, row after row."""
    for row in itertools.chain([dict(zip(COLUMNS, COLUMNS, strict=True))], rows):
        line = io.StringIO()
        csv.DictWriter(line, COLUMNS).writerow(row)
        yield line.getvalue().encode()


def file_state(path: Path) -> list[int]:
    """Size in bytes and time of the last change in ns, by which a changed file is known; empty if there is none."""
    try:
        state = path.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


def _valid_lines(file: Any) -> Iterator[tuple[int, str, Record]]:
    """Offset, text and record of every whole line but the first of a binary file at its start."""
    offset = len(file.readline())
    while raw := file.readline():
        record = _parsed(raw)
        if record is not None and 'file_name' in record and raw.endswith(b'\n'):
            yield offset, raw.decode().rstrip('\n'), record
        offset += len(raw)


def _parsed(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
