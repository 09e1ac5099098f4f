"""The tables of a page, as HTML: scores, differences, costs, classes."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.probes.comparison import NOT_TOLD_APART, Compared
from experiments.probes.cost import FeatureCost
from experiments.probes.scores import class_iou
from experiments.probes.summary import Summary


def score_table(summaries: Iterable[Summary]) -> str:
    """A line for each summary; single seeds appear where the pointer rests on a score."""
    head = header_row(('backbone', 'protocol', 'block', 'labels', 'mIoU', 'seeds', ''), names=('backbone', ''))
    body = []
    for summary in summaries:
        row = summary.first
        every = ', '.join(f'seed {one.seed}: {one.miou:.2f}' for one in summary.rows)
        notes = '; '.join(sorted({one.note for one in summary.rows if one.note}))
        cells = (row.protocol, row.block, f'{row.fraction:.0%} ({row.num_images} images)')
        body.append(
            f'<tr>{name_cell(row.backbone)}'
            + ''.join(f'<td>{html.escape(str(cell))}</td>' for cell in cells)
            + f'<td title="{every}">{summary}</td><td>{len(summary.rows)}</td>{name_cell(notes)}</tr>'
        )
    return f'<div class="wide"><table>{head}{"".join(body)}</table></div>'


def difference_section(compared: Sequence[Compared]) -> str:
    """Differences of pairs with their intervals; '' for none."""
    if not compared:
        return ''
    head = header_row(
        ('first', 'second', 'protocol', 'labels', 'first - second', '95 %', 'sd, seeds', 'higher'),
        names=('first', 'second', 'higher'),
    )
    body = []
    for one in compared:
        first, second, difference = one.first.first, one.second.first, one.difference
        cells = (
            first.protocol,
            f'{first.fraction:.0%}',
            f'{difference.value:+.1f}',
            f'{difference.low:+.1f} to {difference.high:+.1f}',
            f'{difference.deviation:.1f} ({difference.num_seeds})' if difference.num_seeds > 1 else '-',
        )
        body.append(
            f'<tr>{name_cell(f"{first.backbone}, block {first.block}")}'
            + name_cell(f'{second.backbone}, block {second.block}')
            + ''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)
            + f'{name_cell(one.verdict)}</tr>'
        )
    return (
        '<h2>Differences</h2><p>Points of mIoU, mean over seeds. The interval is that of a paired bootstrap over the '
        'validation images, the same draws for both; the spread over label draws stands beside it. Where it holds 0 '
        f'the two are {NOT_TOLD_APART}.</p><div class="wide"><table>{head}{"".join(body)}</table></div>'
    )


def cost_section(costs: Sequence[FeatureCost]) -> str:
    """What the features of each backbone cost, and how that was measured; '' for none."""
    if not costs:
        return ''
    heads = ('backbone', 'image', 'parameters (M)', 'GFLOP', 'time (ms)', 'memory (MiB)')
    body = []
    for one in costs:
        cells = (
            f'{one.size[0]} x {one.size[1]}',
            f'{one.parameters / 1e6:.2f}',
            f'{one.giga_flops:.2f}',
            f'{one.milliseconds:.1f}',
            '-' if one.peak_mib is None else f'{one.peak_mib:.0f}',
        )
        body.append(f'<tr>{name_cell(one.backbone)}' + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>')
    measured = '; '.join(sorted({f'{one.device}, {one.precision}' for one in costs}))
    return (
        '<h2>Cost of the features</h2><p>All blocks of the frozen backbone, no head. GFLOP: forward pass of one image, '
        'counted by torch (a multiplication and an addition are two). Time: one image, read, resized and passed '
        'through in batches of 8, the quicker of two passes, whatever else ran on the machine. Memory: what the '
        'weights and the pass of one batch add to the process at most. '
        f'Measured on: {html.escape(measured)}.</p><div class="wide"><table>'
        + header_row(heads, names=('backbone',))
        + f'{"".join(body)}</table></div>'
    )


def class_table(best: Sequence[Summary], about: Mapping[str, object]) -> str:
    """IoU of every class at the best blocks, mean over seeds."""
    classes = about['classes']
    assert isinstance(classes, list)
    largest = max((one.first.fraction for one in best), default=1.0)
    shown = [one for one in best if one.first.fraction == largest]
    heads = ''.join(
        f'<th class="name">{_breakable(one.first.backbone)}<br>{one.first.protocol}, block {one.first.block}</th>'
        for one in shown
    )
    scores = [np.mean([class_iou(row.areas.sum(axis=0)) for row in one.rows], axis=0) for one in shown]
    body = ''.join(
        f'<tr><td>{html.escape(name)}</td>'
        + ''.join(f'<td>{"-" if np.isnan(score[index]) else f"{score[index]:.1f}"}</td>' for score in scores)
        + '</tr>'
        for index, name in enumerate(classes)
    )
    return f'<div class="wide"><table><tr><th>class</th>{heads}</tr>{body}</table></div>'


def header_row(heads: Sequence[str], names: Sequence[str]) -> str:
    """The first line of a table; columns in ``names`` hold text (:func:`name_cell`), the others numbers."""
    return '<tr>' + ''.join(f'<th{" class=name" * (head in names)}>{head}</th>' for head in heads) + '</tr>'


def name_cell(text: str) -> str:
    """A cell with text that may be long, escaped; names of backbones break after their parts."""
    return f'<td class="name">{_breakable(text)}</td>'


def _breakable(text: str) -> str:
    return re.sub(r'(?<=[/=_.])(?=\w)', '<wbr>', html.escape(text))
