"""One self-contained HTML page of a run: best blocks, curves, pictures, all rows, and the protocol in full."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.probes.chart import Point, line_chart
from experiments.probes.comparison import NOT_TOLD_APART, Compared
from experiments.probes.pictures import Gallery
from experiments.probes.results import Row
from experiments.probes.scores import class_iou
from experiments.probes.settings import KNN, LINEAR, LOGISTIC
from experiments.probes.summary import Summary, best_blocks, summarise

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ccc } h3 { font-size: 1em }
table { border-collapse: collapse; font-size: .9em } td, th { padding: .2em .7em; border-bottom: 1px solid #ddd }
td, th { text-align: right } td:first-child, th:first-child { text-align: left }
td, th { white-space: nowrap } .name { white-space: normal; overflow-wrap: anywhere; min-width: 9em }
.wide { overflow-x: auto }
figure { display: inline-block; margin: 0 .5em .5em 0 } figcaption { font-size: .85em; color: #555 }
img { width: 300px; display: block } img.patches { image-rendering: pixelated } svg { max-width: 100%; height: auto }
"""
DESCRIPTIONS = {
    LOGISTIC: 'multinomial logistic regression on standardised tokens of {patches} training patches (more than half '
    'labelled; targets are the shares of each class), L2 {l2:g}, solved by L-BFGS (at most {max_iters} iterations)',
    LINEAR: "DINOv2's head: BatchNorm and one 1x1 convolution, AdamW (1e-3, weight decay 1e-4, warm-up, linear decay), "
    'batches of 16 images, {iters} iterations (DINOv2: 40,000); departures: whole images, no augmentation, the loss at '
    '4 x 4 points of a patch',
    KNN: 'retrieval: {memory} training patches are remembered; a patch attends over its {neighbours} nearest (cosine, '
    'temperature {temperature:g}) and takes the mean of their class shares; nothing is trained',
}


def make_page(
    rows: Sequence[Row],
    about: Mapping[str, object],
    photographs: Sequence[bytes],
    galleries: Sequence[Gallery],
    compared: Sequence[Compared] = (),
) -> str:
    """Builds the page.

    Args:
        rows: All rows of the run.
        about: As :meth:`experiments.probes.run.Prober.about` gives it.
        photographs: The images of the galleries, as PNG.
        galleries: Pictures of the backbones.
        compared: Backbones compared with each other.

    Returns:
        HTML that loads nothing.
    """
    summaries = summarise(rows)
    seeds = sorted({row.seed for row in rows})
    parts = [
        '<h1>Probes of frozen features</h1>',
        f'<p>{_data_sentence(about)} Scores are mIoU in per cent over the pixels that are not void, of the whole '
        f'validation set; means and standard deviations over the label draws of seed {", ".join(map(str, seeds))}.</p>',
        '<h2>Best block of each backbone</h2>',
        _table(best_blocks(summaries)),
        _comparison(compared),
        *_block_charts(summaries),
        *_label_charts(summaries),
        *_pictures(photographs, galleries),
        '<h2>Classes</h2>',
        _class_table(best_blocks(summaries), about),
        '<h2>All rows</h2>',
        _table(summaries),
        '<h2>Protocol</h2>',
        _protocol(about),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Probes of frozen features</title>'
        f'<style>{STYLE}</style></head><body>\n' + '\n'.join(part for part in parts if part) + '\n</body></html>\n'
    )


def _data_sentence(about: Mapping[str, object]) -> str:
    classes = about['classes']
    assert isinstance(classes, list)
    return f'{about["train_images"]} training images, {about["val_images"]} validation images, {len(classes)} classes.'


def _table(summaries: Iterable[Summary]) -> str:
    head = (
        '<tr><th>backbone</th><th>protocol</th><th>block</th><th>labels</th><th>mIoU</th><th>seeds</th><th></th></tr>'
    )
    body = []
    for summary in summaries:
        row = summary.first
        every = ', '.join(f'seed {one.seed}: {one.miou:.2f}' for one in summary.rows)
        notes = '; '.join(sorted({one.note for one in summary.rows if one.note}))
        cells = (row.protocol, row.block, f'{row.fraction:.0%} ({row.num_images} images)')
        body.append(
            f'<tr>{_name_cell(row.backbone)}'
            + ''.join(f'<td>{html.escape(str(cell))}</td>' for cell in cells)
            + f'<td title="{every}">{summary}</td><td>{len(summary.rows)}</td>{_name_cell(notes)}</tr>'
        )
    return f'<div class="wide"><table>{head}{"".join(body)}</table></div>'


def _comparison(compared: Sequence[Compared]) -> str:
    if not compared:
        return ''
    head = ''.join(
        f'<th>{name}</th>'
        for name in ('first', 'second', 'protocol', 'labels', 'first - second', '95 %', 'sd, seeds', 'higher')
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
            f'<tr>{_name_cell(f"{first.backbone}, block {first.block}")}'
            + _name_cell(f'{second.backbone}, block {second.block}')
            + ''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)
            + f'{_name_cell(one.verdict)}</tr>'
        )
    return (
        '<h2>Differences</h2><p>Points of mIoU, mean over seeds. The interval is that of a paired bootstrap over the '
        'validation images, the same draws for both; the spread over label draws stands beside it. Where it holds 0 '
        f'the two are {NOT_TOLD_APART}.</p><div class="wide"><table><tr>{head}</tr>{"".join(body)}</table></div>'
    )


def _name_cell(text: str) -> str:
    return f'<td class="name">{html.escape(text)}</td>'


def _block_charts(summaries: Sequence[Summary]) -> list[str]:
    """A chart for each protocol: mIoU by block, at the largest label fraction."""
    largest = max((summary.first.fraction for summary in summaries), default=1.0)
    shown = [one for one in summaries if one.first.fraction == largest and isinstance(one.first.block, int)]
    if len({one.first.block for one in shown}) < 2:
        return []
    parts = [f'<h2>By block, {largest:.0%} of the labels</h2>']
    for protocol, group in _by_protocol(shown).items():
        curves: dict[str, list[Point]] = {}
        for one in sorted(group, key=lambda one: int(one.first.block)):
            curves.setdefault(one.first.backbone, []).append(Point(float(one.first.block), one.mean, one.deviation))
        parts += [f'<h3>{protocol}</h3>', line_chart(curves, 'block', 'mIoU (%)')]
    return parts


def _label_charts(summaries: Sequence[Summary]) -> list[str]:
    """A chart for each protocol: mIoU by label fraction, of the best block at each."""
    if len({summary.first.fraction for summary in summaries}) < 2:
        return []
    parts = ['<h2>By labels, best block at each point</h2>']
    for protocol, group in _by_protocol(best_blocks(summaries)).items():
        curves: dict[str, list[Point]] = {}
        for one in sorted(group, key=lambda one: one.first.fraction):
            curves.setdefault(one.first.backbone, []).append(Point(one.first.num_images, one.mean, one.deviation))
        parts += [f'<h3>{protocol}</h3>', line_chart(curves, 'training images', 'mIoU (%)', logarithmic=True)]
    return parts


def _by_protocol(summaries: Iterable[Summary]) -> dict[str, list[Summary]]:
    groups: dict[str, list[Summary]] = {}
    for summary in summaries:
        groups.setdefault(summary.first.protocol, []).append(summary)
    return groups


def _pictures(photographs: Sequence[bytes], galleries: Sequence[Gallery]) -> list[str]:
    if not galleries:
        return []
    parts = [
        '<h2>What the features look like</h2>',
        '<p>Colours are the first three principal components of the tokens of a block, in one basis for the images of '
        'a row: the same colour is the same direction. Below, how similar each patch is to the ringed one (cosine; '
        'yellow = the same, dark = least similar of the image).</p>',
        ''.join(_image(content, 'photograph', '') for content in photographs),
    ]
    for gallery in galleries:
        parts.append(f'<h3>{html.escape(gallery.backbone)}</h3>')
        for block in gallery.pca:
            for kind, paths in (('components', gallery.pca[block]), ('similarity', gallery.similarity[block])):
                images = (_image(path.read_bytes(), f'{kind}, block {block}', 'patches') for path in paths)
                parts.append(f'<div>{"".join(images)}</div>')
    return parts


def _image(png: bytes, caption: str, style: str) -> str:
    data = base64.b64encode(png).decode('ascii')
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" class="{style}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption>'
        '</figure>'
    )


def _class_table(best: Sequence[Summary], about: Mapping[str, object]) -> str:
    """IoU of every class at the best blocks, mean over seeds."""
    classes = about['classes']
    assert isinstance(classes, list)
    largest = max((one.first.fraction for one in best), default=1.0)
    shown = [one for one in best if one.first.fraction == largest]
    heads = ''.join(
        f'<th class="name">{html.escape(one.first.backbone)}<br>{one.first.protocol}, block {one.first.block}</th>'
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


def _protocol(about: Mapping[str, object]) -> str:
    sizes, settings = about['size'], about['settings']
    assert isinstance(sizes, dict) and isinstance(settings, dict)
    lines = [f'{name}: images of {size[0]} x {size[1]} px' for name, size in sizes.items()]
    lines += [f'{name}: {DESCRIPTIONS[name].format(**numbers)}' for name, numbers in settings.items()]
    lines += [
        f'tokens: {about["tokens"]}; backbones computed in {about["precision"]}, weights frozen',
        'logits (probabilities for knn) are upsampled bilinearly to the labels, at the size of the masks',
        "mIoU and accuracy are mmseg's: areas summed over the validation set, classes that occur nowhere left out",
        'a smaller label fraction of a seed lies within each larger one of the same seed',
    ]
    return '<ul>' + ''.join(f'<li>{html.escape(line)}</li>' for line in lines) + '</ul>'
