"""Rows of a table of results, and where their values are in the file that an evaluation wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any


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
