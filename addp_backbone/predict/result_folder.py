"""The folder of a prediction: a line for each image as it is done, from which a killed run goes on, and one JSON.

``predictions.jsonl`` begins with the settings; each further line is an image's record and the state of its file. A line
that was cut is passed over. ``predictions.json`` is written from it when the run ends, whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from addp_backbone.files.atomic import remove_abandoned_parts, replace_file
from addp_backbone.predict.sources import LINES_FILE, RECORDS_FILE, RESULT_FOLDERS

Record = dict[str, Any]


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
        self.summary.unlink(missing_ok=True)

    def done(self) -> dict[Path, str]:
        """Path -> name of the images that have a result, and whose files are still as they were then."""
        return {
            Path(record['file_name']): record['name']
            for _, record in self._read_lines()
            if 'error' not in record and record.get('file') == file_state(Path(record['file_name']))
        }

    def add(self, record: Record, images: Mapping[str, bytes]) -> None:
        """Writes the result of one image.

        Args:
            record: With ``file_name`` and, unless there is an ``error``, ``name``.
            images: Sub-folder -> content of a PNG.
        """
        for child, png in images.items():
            replace_file(self.folder / child / f'{record["name"]}.png', png)
        line = {**record, 'file': file_state(Path(record['file_name']))}
        with self.lines.open('a', encoding='utf-8') as file:  # opened anew: an image takes far longer than that
            file.write(json.dumps(line) + '\n')

    def finish(self, order: Mapping[Path, str]) -> None:
        """Writes ``predictions.json``; images that are not in ``order`` stand behind the others."""
        latest: dict[Path, int] = {}  # the line of an image's last result
        for number, (_, record) in enumerate(self._read_lines()):
            latest.setdefault(Path(record['file_name']), number)
            latest[Path(record['file_name'])] = number
        wanted = [path for path in order if path in latest] + [path for path in latest if path not in order]
        replace_file(self.summary, self._pieces([latest[path] for path in wanted]))

    def _pieces(self, numbers: list[int]) -> Iterator[bytes]:
        """The content of ``predictions.json``, record after record."""
        shown = {name: value for name, value in self.settings.items() if name not in self.unshown}
        yield (json.dumps(shown)[:-1] + ', "images": [').encode()
        with self.lines.open('rb') as file:
            offsets = [offset for offset, _, _ in _valid_lines(file)]
            for index, number in enumerate(numbers):
                file.seek(offsets[number])
                record = json.loads(file.readline())
                del record['file']
                yield ((', ' if index else '') + json.dumps(record)).encode()
        yield b']}'

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
