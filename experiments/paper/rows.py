"""The rows of the paper's table: the published values (here and nowhere else in code), and where our own stand in an evaluation's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

GENERATION, FINE_TUNING, LINEAR, DETECTION, SEGMENTATION = TASKS = (
    'generation',
    'fine-tuning',
    'linear probe',
    'detection',
    'segmentation',
)


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        title: The measure.
        task: What has to be run for it.
        key: Names that lead to the value in the file that the evaluation wrote.
        factor: Times this, the value is in the unit of the table.
        data: Of which data set, where the paper's data are used and the measure does not say it.
    """

    title: str
    task: str
    key: tuple[str, ...]
    factor: float = 1.0
    data: str = ''


ROWS = {
    'fid': Row('FID', GENERATION, ('metrics', 'frechet_inception_distance')),
    'is': Row('IS', GENERATION, ('metrics', 'inception_score_mean')),
    'top1': Row('top-1', FINE_TUNING, ('accuracy/top1',), data='ImageNet'),
    'linear': Row('top-1, linear probe', LINEAR, ('accuracy/top1',), data='ImageNet'),
    'ap': Row('AP box', DETECTION, ('coco/bbox_mAP',), factor=100, data='COCO'),
    'miou': Row('mIoU', SEGMENTATION, ('mIoU',), data='ADE20K'),
}
PAPER_ROWS = ('fid', 'is', 'top1', 'ap', 'miou')  # the linear probe has no published value that we know of

PUBLISHED_SOURCE = 'ADDP (ICLR 2024), arXiv 2306.05423'
PUBLISHED: dict[str, dict[str, float]] = {
    'base': {'fid': 8.9, 'is': 95.3, 'top1': 83.9, 'ap': 51.7, 'miou': 48.1},
    'large': {'fid': 7.6, 'is': 105.1, 'top1': 85.9, 'ap': 54.6, 'miou': 54.3},
}


def value_of(metrics: Any, key: tuple[str, ...], factor: float = 1.0) -> float:
    """The value of a row in the contents of an evaluation's file.

    Raises:
        ValueError: If there is none, or it is no finite number.
    """
    node = metrics
    for name in key:
        if not isinstance(node, Mapping) or name not in node:
            raise ValueError(f'the file has no {" / ".join(key)}')
        node = node[name]
    if isinstance(node, bool) or not isinstance(node, int | float) or not isfinite(node):
        raise ValueError(f'{" / ".join(key)} is {node!r}, which is no number')
    return factor * node
