"""What a check of a data set finds, and mapping over many files in parallel."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

ERROR, WARNING = 'error', 'warning'
Item = TypeVar('Item')
Result = TypeVar('Result')
Progress = Callable[[Iterable[Item], int], Iterable[Item]]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one record.

    Attributes:
        level: :data:`ERROR` (training would fail or learn something wrong) or :data:`WARNING`.
        kind: What sort of thing, the same for all such findings.
        file: File it is in.
        record: What in the file: an id, a name; may be empty.
        detail: What was got, and what was wanted.
    """

    level: str
    kind: str
    file: str
    record: str
    detail: str

    def __str__(self) -> str:
        return ': '.join(part for part in (self.file, self.record, self.detail) if part)


@dataclass
class Findings:
    """A growing list of findings, and how the labels are distributed.

    Attributes:
        entries: The findings in the order they were made.
        histogram: Split -> class -> number of boxes, or share of the pixels that are not void.
    """

    entries: list[Finding] = field(default_factory=list)
    histogram: dict[str, dict[str, float]] = field(default_factory=dict)

    def error(self, kind: str, file: object, record: str, detail: str) -> None:
        """Adds an error."""
        self.entries.append(Finding(ERROR, kind, str(file), record, detail))

    def warn(self, kind: str, file: object, record: str, detail: str) -> None:
        """Adds a warning."""
        self.entries.append(Finding(WARNING, kind, str(file), record, detail))

    @property
    def num_errors(self) -> int:
        """How many findings are errors."""
        return sum(entry.level == ERROR for entry in self.entries)

    @property
    def num_warnings(self) -> int:
        """How many findings are warnings."""
        return len(self.entries) - self.num_errors

    def lines(self, max_per_kind: int) -> list[str]:
        """The findings by kind, errors first.

        Args:
            max_per_kind: How many of a kind are listed; 0 = all.

        Returns:
            Lines of text.
        """
        groups: dict[tuple[str, str], list[Finding]] = {}
        for entry in sorted(self.entries, key=lambda entry: entry.level):
            groups.setdefault((entry.level, entry.kind), []).append(entry)
        lines = []
        for (level, kind), entries in groups.items():
            lines.append(f'{level.upper()} {kind} ({len(entries)})')
            shown = entries[: max_per_kind or None]
            lines += [f'  {entry}' for entry in shown]
            if len(shown) < len(entries):
                lines.append(f'  ... and {len(entries) - len(shown)} more (--max-findings 0 lists all)')
        return lines

    def histogram_lines(self) -> list[str]:
        """The label histogram as a table: a line for each class."""
        splits = list(self.histogram)
        if not splits:
            return []
        names = list(self.histogram[splits[0]])
        width = max(len(name) for name in [*names, 'class'])
        lines = [f'{"class":{width}}' + ''.join(f'{split:>12}' for split in splits)]
        for name in names:
            values = [self.histogram[split].get(name, 0) for split in splits]
            cells = [f'{v:>12}' if isinstance(v, int) else f'{v:>12.2%}' for v in values]
            lines.append(f'{name:{width}}' + ''.join(cells))
        return lines


def bounded_map(function: Callable[[Item], Result], items: Iterable[Item], num_workers: int) -> Iterator[Result]:
    """``map`` in threads, in order, with few results in memory at a time (decoders release the interpreter lock)."""
    source = iter(items)
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        pending: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(source, 4 * num_workers))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(source, 1))
            yield result
