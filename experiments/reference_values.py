"""Our configs' values beside those of the sources they follow: the comparison, and its table for the documentation.

``docs/reference_values.json`` has one row a value: what it is, where it stands here, its value, and the source's file
and line. A row with ``departure`` says what the source has instead and why. :func:`check` finds every value that has
drifted from its row since; :func:`render` writes the tables of ``docs/reference.md``.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
DATA_FILE = ROOT / 'docs' / 'reference_values.json'
PAGE = ROOT / 'docs' / 'reference.md'
BEGIN, END = '<!-- values: begin -->', '<!-- values: end -->'
NOT_SET = 'not set'
_STEP = re.compile(r'(\w+)\[(\w+)\]')  # a list's element by its type: train_pipeline[LargeScaleJitter]
_MISSING = object()


@dataclass(frozen=True)
class Row:
    """One value.

    Attributes:
        what: In words.
        key: Where it stands here. A path in the config, ``model.neck.scales``; ``*`` takes every element of a list,
            ``name[Type]`` the element of that type. ``code:module:NAME.attribute`` is a value in the code,
            ``default:module:function.parameter`` the default of a parameter.
        value: Ours, as JSON has it; ``'not set'`` where the config says nothing.
        source: Name of the source, a blank, and file and line in it, or words where there is no file.
        theirs: The source's value; ours where the two are equal.
        departure: Why they differ; empty where they are equal.
    """

    what: str
    key: str
    value: Any
    source: str
    theirs: Any
    departure: str = ''


@dataclass(frozen=True)
class Table:
    """The values of one config."""

    title: str
    config: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Finding:
    """A row and the value that stands there today."""

    table: Table
    row: Row
    today: Any

    @property
    def has_drifted(self) -> bool:
        """Whether today's value is another than the row's."""
        return not _equal(self.today, self.row.value)


def load(path: Path = DATA_FILE) -> tuple[dict[str, dict[str, str]], list[Table]]:
    """Reads the data file.

    Returns:
        The sources (name -> ``repository`` and ``commit``) and the tables.

    Raises:
        ValueError: If a row has unknown or missing entries, names an unknown source, or has a departure without a
            different value of the source.
    """
    data = json.loads(path.read_text(encoding='utf-8'))
    tables = [
        Table(table['title'], table['config'], tuple(_row(entry, data['sources']) for entry in table['rows']))
        for table in data['tables']
    ]
    return data['sources'], tables


def _row(entry: Mapping[str, Any], sources: Mapping[str, Any]) -> Row:
    required, optional = {'what', 'key', 'value', 'source'}, {'theirs', 'departure'}
    if not required <= set(entry) <= required | optional:
        raise ValueError(f'a row needs {sorted(required)} and may have {sorted(optional)}, got {dict(entry)}')
    if entry['source'].partition(' ')[0] not in sources:
        raise ValueError(f'{entry["what"]}: unknown source {entry["source"]!r}, wanted one of {sorted(sources)}')
    row = Row(**{'theirs': entry['value'], **entry})
    if bool(row.departure) == _equal(row.value, row.theirs):
        raise ValueError(f"{row.what}: a departure and a different value of the source's belong together, got {entry}")
    return row


def check(tables: Sequence[Table], root: Path = ROOT) -> list[Finding]:
    """Looks every value up as it stands today.

    Args:
        tables: Rows to look up.
        root: The repository.

    Returns:
        A finding for each row, in order.
    """
    findings = []
    for table in tables:
        cfg = Config.fromfile(root / table.config, import_custom_modules=False)
        findings += [Finding(table, row, look_up(row.key, cfg)) for row in table.rows]
    return findings


def look_up(key: str, cfg: Config) -> Any:
    """Finds a value by a row's ``key``; ``'not set'`` if a config has none there.

    Raises:
        ValueError: If the code has no such name or parameter.
    """
    kind, _, rest = key.partition(':')
    if not rest:
        found = _descend(cfg, key.split('.'))
        return NOT_SET if found is _MISSING else _as_json(found)
    module_name, _, path = rest.partition(':')
    names = path.split('.')
    if kind not in ('code', 'default') or not path:
        raise ValueError(f'key {key!r}: wanted a path in the config, code:module:NAME or default:module:function.name')
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f'{key!r} is no longer in the code: {error}') from error
    for name in names if kind == 'code' else names[:-1]:
        target = target[name] if isinstance(target, Mapping) else getattr(target, name, _MISSING)
    if kind == 'default' and target is not _MISSING:
        parameter = inspect.signature(target).parameters.get(names[-1])
        target = _MISSING if parameter is None else parameter.default
    if target is _MISSING:
        raise ValueError(f'{key!r} is no longer in the code')
    return _as_json(target)


def _descend(node: Any, names: list[str]) -> Any:
    for i, name in enumerate(names):
        step = _STEP.fullmatch(name)
        if name == '*':
            return [_descend(child, names[i + 1 :]) for child in node]
        if step:
            children = node.get(step[1], ())
            node = next((child for child in children if child['type'] == step[2]), _MISSING)
        elif isinstance(node, list | tuple):
            node = node[int(name)]
        else:
            node = node.get(name, _MISSING)
        if node is _MISSING or node is None:
            return _MISSING
    return node


def _as_json(value: Any) -> Any:
    return [_as_json(child) for child in value] if isinstance(value, list | tuple) else value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, float) and isinstance(other, float | int) and not isinstance(other, bool):
        return math.isclose(one, other, rel_tol=1e-9)
    return type(one) is type(other) and one == other


def render(sources: Mapping[str, Mapping[str, str]], tables: Sequence[Table]) -> str:
    """Writes the tables as Markdown, with links to the sources' lines."""
    num_rows = sum(len(table.rows) for table in tables)
    departures = sum(bool(row.departure) for table in tables for row in table.rows)
    lines = [
        f'{num_rows} values, {departures} of them departures (in bold). The list is `docs/reference_values.json`; '
        '`python tools/reference.py` prints it with',
        'the values of today, `--write` renews this page, and a test fails where a value drifts.',
    ]
    for table in tables:
        lines += ['', f'### {table.title}', '', f'`{table.config}`', '', '| value | ours | the source | where |']
        lines += ['|---|---|---|---|', *(_line(row, sources) for row in table.rows)]
    return '\n'.join(lines)


def _line(row: Row, sources: Mapping[str, Mapping[str, str]]) -> str:
    name, _, place = row.source.partition(' ')
    file, _, line = place.rpartition(':')
    repository, commit = sources[name]['repository'], sources[name]['commit']
    where = f'{name}: {place}'
    if repository.startswith('https://github.com/') and line.isdigit():
        where = f'[{name}: {file.rpartition("/")[2]}:{line}]({repository}/blob/{commit}/{file}#L{line})'
    theirs = f'**{_text(row.theirs)}**; {row.departure}' if row.departure else _text(row.theirs)
    return f'| {row.what} | {_text(row.value)} | {theirs} | {where} |'


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, list):
        return ', '.join(f'({_text(child)})' if isinstance(child, list) else _text(child) for child in value)
    if isinstance(value, float):
        return f'{value:.6g}'
    return value.rpartition('.')[2] if isinstance(value, str) else str(value)


def insert(page: str, text: str) -> str:
    """Puts the tables between the page's two marks.

    Raises:
        ValueError: If the page does not have both marks, in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f'the page needs the marks {BEGIN} and {END}, in that order')
    return f'{before}{BEGIN}\n\n{text}\n\n{END}{after}'
