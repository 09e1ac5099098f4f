"""Rows of a probe on disk: each written once it is finished, so that a cut run goes on; ``results.json`` of all."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from addp_backbone.files.atomic import replace_file
from experiments.probes.scores import mean_iou, pixel_accuracy

RESULTS_FILE, REPORT_FILE, ROWS_FOLDER = 'results.json', 'report.html', 'rows'
_VERSION = 2  # of what a row's score depends on besides its inputs: raise it when a protocol changes


@dataclass(frozen=True)
class Row:
    """One score.

    Attributes:
        backbone: As it was asked for.
        protocol: 'linear', 'logistic' or 'knn'.
        block: Number from 1, or '3+6+9'.
        fraction: Of the training images.
        seed: Of their choice.
        num_images: How many those are.
        seconds: How long fitting and scoring took.
        note: What is to be known of it, or ''.
        areas: (val images, 3, C), see :func:`addp_backbone.files.mask_areas.count_areas`.
    """

    backbone: str
    protocol: str
    block: int | str
    fraction: float
    seed: int
    num_images: int
    seconds: float
    note: str
    areas: NDArray[np.int64]

    @property
    def miou(self) -> float:
        """In per cent."""
        return float(mean_iou(self.areas.sum(axis=0)))

    def record(self) -> dict[str, Any]:
        """The row as ``results.json`` has it; scores in per cent, None for one that is not defined."""
        scores = {'mIoU': self.miou, 'aAcc': float(pixel_accuracy(self.areas.sum(axis=0)))}
        return dict(
            backbone=self.backbone,
            protocol=self.protocol,
            block=self.block,
            fraction=self.fraction,
            seed=self.seed,
            **{name: round(value, 4) if np.isfinite(value) else None for name, value in scores.items()},
            num_images=self.num_images,
            seconds=round(self.seconds, 2),
            note=self.note,
        )


class RowStore:
    """The finished rows of an output folder.

    Args:
        out: The folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def path(self, inputs: Mapping[str, Any]) -> Path:
        """The file of a row.

        Args:
            inputs: Everything that its score depends on.
        """
        text = json.dumps([_VERSION, inputs], sort_keys=True)
        return self.out / ROWS_FOLDER / f'{hashlib.sha256(text.encode()).hexdigest()[:20]}.npz'

    def read(self, path: Path, backbone: str) -> Row | None:
        """A row if it is finished, under the name that the backbone has now; a damaged file counts as none."""
        try:
            with np.load(path) as file:
                record = json.loads(str(file['record']))
                return Row(**{**record, 'backbone': backbone}, areas=file['areas'])
        except (FileNotFoundError, zipfile.BadZipFile, EOFError, KeyError, ValueError, TypeError):
            return None

    @contextmanager
    def claim(self, path: Path) -> Iterator[bool]:
        """Takes a row for this process, unless another run into the same folder is making it.

        A process that ends, however, lets go of its row.

        Args:
            path: From :meth:`path`.

        Yields:
            Whether the row is ours until the context is left. One row of a process at a time.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / '.lock').open('a+b') as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(path.stem[:15], 16))
            except OSError:
                yield False
                return
            yield True

    def write(self, path: Path, row: Row) -> None:
        """Writes a finished row."""
        record = {name: value for name, value in row.__dict__.items() if name != 'areas'}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, record=np.array(json.dumps(record)), areas=row.areas)
        replace_file(path, buffer.getvalue())


def write_results(
    out: Path, rows: Sequence[Row], about: Mapping[str, Any], trained: Mapping[str, Any] | None = None
) -> None:
    """Writes ``results.json``: ``rows``, under ``protocol`` how they were made, under ``trained`` trainings if any."""
    content = dict(rows=[row.record() for row in rows], protocol=dict(about))
    content |= {} if trained is None else dict(trained=dict(trained))
    replace_file(out / RESULTS_FILE, json.dumps(content, indent=1, ensure_ascii=False) + '\n')
