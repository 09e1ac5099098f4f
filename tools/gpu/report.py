"""What a check measures and finds, kept in a file from the first figure on, so that a crash or a time limit loses none.

A check gets a :class:`Report` and calls ``require`` for what must hold, ``measured`` for figures, and ``note`` for the
rest. It goes on after a ``require`` that does not hold: one run on a card tells all that is wrong.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from addp_backbone.files.atomic import replace_file


class SkippedError(Exception):
    """The check, or the rest of it, cannot be made here; the message says why."""


class Report:
    """Findings of one check.

    Args:
        path: JSON file that is rewritten at every finding; None keeps them in memory.

    Attributes:
        values: Figures by name, plain values.
        failures: One sentence for each thing that does not hold.
        lines: Measured figures in words, each with its unit, to be quoted.
        figure: The figure that stands for the check in the table.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.failures: list[str] = []
        self.lines: list[str] = []
        self.figure = ''

    def note(self, name: str, value: Any) -> None:
        """Keeps a value (a number, a word, a list or dict of such)."""
        self.values[name] = value
        self._write()

    def measured(self, what: str, value: float, unit: str, beside: str = '') -> None:
        """Keeps a figure that documents may quote.

        Args:
            what: What was measured, with sizes and precision.
            value: The figure.
            unit: Its unit, 'ms' for instance.
            beside: A second figure that belongs to it, such as peak memory.
        """
        self.values[f'{what} ({unit})'] = value
        self.lines.append(f'{what}: {value:.4g} {unit}' + (f', {beside}' if beside else ''))
        self._write()

    def require(self, holds: bool, failure: str) -> None:
        """Keeps a failure if something does not hold."""
        if not holds:
            self.failures.append(failure)
        self._write()

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Requires a value of at most ``limit``; nan fails."""
        self.values[name] = value
        self.require(value <= limit, f'{name}: {value:.2g}, wanted at most {limit:.2g}')

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Requires a value of at least ``limit``; nan fails."""
        self.values[name] = value
        self.require(value >= limit, f'{name}: {value:.5g}, wanted at least {limit:.5g}')

    def as_dict(self) -> dict[str, Any]:
        """The findings as JSON's types; numbers that are not finite become words."""
        content = dict(figure=self.figure, values=self.values, lines=self.lines, failures=self.failures)
        return _finite(content)

    def _write(self) -> None:
        if self.path is not None:
            replace_file(self.path, json.dumps(self.as_dict()))


def read_report(path: Path) -> dict[str, Any]:
    """The findings that a check left; empty ones if it left none."""
    empty = Report().as_dict()
    return {**empty, **json.loads(path.read_text(encoding='utf-8'))} if path.exists() else empty


def _finite(node: Any) -> Any:
    """A copy in which nan and the infinities are words, which JSON has no numbers for."""
    if isinstance(node, dict):
        return {str(key): _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return str(node) if isinstance(node, float) and not math.isfinite(node) else node
