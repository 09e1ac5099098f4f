"""Trainings on the page of a comparison, in ``results.json`` and as ``trained.csv``."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from addp_backbone.files.atomic import replace_file
from experiments.probes.comparison import NOT_TOLD_APART
from experiments.probes.tables import header_row, name_cell
from experiments.trained.summary import Trained, TrainedDifference, TrainedSummary

TRAINED_CSV = 'trained.csv'
_MAX_DIFFERENCES = 12  # of configs, shown for a protocol
_TEXTS = ('protocol', 'backbone', 'first', 'second', 'higher')  # columns; all others hold numbers


def trained_section(trained: Trained) -> str:
    """The part of the page, as HTML; '' if there are no trainings at all."""
    summaries, unfinished = trained.summaries, trained.unfinished
    if not summaries and not unfinished:
        return ''
    parts = ['<h2>Trainings</h2>']
    if summaries:
        parts += [
            '<p>Scores in per cent on the validation images, mean over seeds. The interval is that of a bootstrap over '
            'the validation images; the spread over seeds stands beside it. Time is that of the last run of each '
            'training; - for one that was made elsewhere.</p>',
            _table(('protocol', 'backbone', 'measure', 'score', '95 %', 'sd', 'seeds', 'time'), map(_cells, summaries)),
        ]
    if trained.differences:
        parts += [
            '<h3>Differences</h3><p>Points, mean over the seeds that both have; a paired bootstrap over the validation '
            f'images. Where the interval holds 0 the two are {NOT_TOLD_APART}.</p>',
            _table(
                ('protocol', 'first', 'second', 'measure', 'first - second', '95 %', 'sd, seeds', 'higher'),
                map(_difference_cells, trained.differences),
            ),
        ]
    parts.append(trained.curves)
    if unfinished:
        parts.append(f'<p>Not finished, so not in the tables: {html.escape("; ".join(unfinished))}.</p>')
    for name, lines in trained.protocols.items():
        shown = list(lines[:_MAX_DIFFERENCES])
        if len(lines) > _MAX_DIFFERENCES:
            shown.append(f'and {len(lines) - _MAX_DIFFERENCES} more')
        text = ''.join(f'<li>{html.escape(line)}</li>' for line in shown)
        parts.append(
            f'<p>{html.escape(name)}: but for weights, seeds and folders the configs '
            + (f'differ in:</p><ul>{text}</ul>' if shown else 'are the same.</p>')
        )
    return '\n'.join(parts)


def write_trained(out: Path, summaries: Sequence[TrainedSummary]) -> None:
    """Writes ``trained.csv``: a line for each protocol, backbone and measure; nothing without any."""
    records = [summary.record() for summary in summaries]
    if not records:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(records)
    replace_file(out / TRAINED_CSV, text.getvalue())


def trained_lines(trained: Trained) -> list[str]:
    """The same as lines of text."""
    lines = []
    for one in trained.summaries:
        low, high = one.interval
        lines.append(
            f'{one.first.backbone}: {one.first.name}: {one.first.measure} {one} (95 %: {low:.1f} to {high:.1f})'
        )
    for pair in trained.differences:
        found = pair.record()
        lines.append(
            f'{found["first"]} - {found["second"]}: {found["training"]}, {found["measure"]}: '
            f'{found["difference"]:+.1f} (95 %: {found["low"]:+.1f} to {found["high"]:+.1f}): '
            + (f'{found["higher"]} is higher' if found['higher'] else NOT_TOLD_APART)
        )
    return lines


def _cells(one: TrainedSummary) -> list[str]:
    low, high = one.interval
    seconds = [row.seconds for row in one.rows]
    known = [value for value in seconds if value is not None]
    return [
        one.first.name,
        one.first.backbone,
        one.first.measure,
        f'{one.mean:.1f}',
        f'{low:.1f} to {high:.1f}',
        f'{one.deviation:.1f}' if len(one.rows) > 1 else '-',
        ' '.join(str(row.seed) for row in one.rows),
        ', '.join(f'{value / 60:.1f} min' for value in known) or '-',
    ]


def _difference_cells(one: TrainedDifference) -> list[str]:
    found = one.difference
    return [
        one.first.name,
        one.first.backbone,
        one.second.backbone,
        one.first.measure,
        f'{found.value:+.1f}',
        f'{found.low:+.1f} to {found.high:+.1f}',
        f'{found.deviation:.1f} ({found.num_seeds})' if found.num_seeds > 1 else '-',
        one.record()['higher'] or NOT_TOLD_APART,
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = []
    for cells in rows:
        shown = (
            name_cell(cell) if head in _TEXTS else f'<td>{html.escape(cell)}</td>'
            for head, cell in zip(heads, cells, strict=True)
        )
        body.append(f'<tr>{"".join(shown)}</tr>')
    return f'<div class="wide"><table>{header_row(heads, _TEXTS)}{"".join(body)}</table></div>'
