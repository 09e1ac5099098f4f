"""One self-contained HTML page of a run: best blocks, curves, pictures, all rows, and the protocol in full."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

from experiments.probes.chart import Point, line_chart
from experiments.probes.comparison import Compared
from experiments.probes.cost import FeatureCost
from experiments.probes.pictures import Gallery
from experiments.probes.results import Row
from experiments.probes.settings import KNN, LINEAR, LOGISTIC
from experiments.probes.summary import Summary, best_blocks, summarise
from experiments.probes.tables import class_table, cost_section, difference_section, score_table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ccc } h3 { font-size: 1em }
table { border-collapse: collapse; font-size: .9em } td, th { padding: .2em .7em; border-bottom: 1px solid #ddd }
td, th { text-align: right; white-space: nowrap } td:first-child, th:first-child { text-align: left }
.name { text-align: left; white-space: normal; overflow-wrap: break-word } th.name { vertical-align: bottom }
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
    costs: Sequence[FeatureCost] = (),
    trainings: str = '',
) -> str:
    """Builds the page.

    Args:
        rows: All rows of the run.
        about: As :meth:`experiments.probes.run.Prober.about` gives it.
        photographs: The images of the galleries, as PNG.
        galleries: Pictures of the backbones.
        compared: Backbones compared with each other.
        costs: What the features of the backbones cost.
        trainings: A part about trainings, as HTML; '' for none.

    Returns:
        HTML that loads nothing.
    """
    summaries = summarise(rows)
    seeds = sorted({row.seed for row in rows})
    title = 'Probes of frozen features and trainings' if trainings else 'Probes of frozen features'
    parts = [
        f'<h1>{title}</h1>',
        f'<p>{_data_sentence(about)} Scores are mIoU in per cent over the pixels that are not void, of the whole '
        f'validation set; means and standard deviations over the label draws of seed {", ".join(map(str, seeds))}.</p>',
        '<h2>Best block of each backbone</h2>',
        score_table(best_blocks(summaries)),
        difference_section(compared),
        trainings,
        cost_section(costs),
        *_block_charts(summaries),
        *_label_charts(summaries),
        *_pictures(photographs, galleries),
        '<h2>Classes</h2>',
        class_table(best_blocks(summaries), about),
        '<h2>All rows</h2>',
        score_table(summaries),
        '<h2>Protocol</h2>',
        _protocol(about),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<style>{STYLE}</style></head><body>\n' + '\n'.join(part for part in parts if part) + '\n</body></html>\n'
    )


def _data_sentence(about: Mapping[str, object]) -> str:
    classes = about['classes']
    assert isinstance(classes, list)
    return f'{about["train_images"]} training images, {about["val_images"]} validation images, {len(classes)} classes.'


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
        'yellow = the same, dark = least similar of the image). Last, how much the class token attends to each patch '
        'in the last block, mean over heads (yellow = most of the image, dark = none).</p>',
        ''.join(_image(content, 'photograph', '') for content in photographs),
    ]
    for gallery in galleries:
        parts.append(f'<h3>{html.escape(gallery.backbone)}</h3>')
        for block in gallery.pca:
            for kind, paths in (('components', gallery.pca[block]), ('similarity', gallery.similarity[block])):
                images = (_image(path.read_bytes(), f'{kind}, block {block}', 'patches') for path in paths)
                parts.append(f'<div>{"".join(images)}</div>')
        shown = ''.join(
            _image(path.read_bytes(), 'attention of the class token', 'patches') for path in gallery.attention
        )
        parts.append(f'<div>{shown or "No class token whose attention could be shown."}</div>')
    return parts


def _image(png: bytes, caption: str, style: str) -> str:
    data = base64.b64encode(png).decode('ascii')
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" class="{style}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption>'
        '</figure>'
    )


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
