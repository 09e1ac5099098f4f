"""One self-contained HTML page of a miniature run: table, curves and images, readable from disk without a network."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from addp_backbone.files.images import encode_png
from experiments.miniature.plan import INITS, Miniature
from experiments.miniature.table import as_text

_MAX_WIDTH_PX = 1100
_OVERLAY_PX = 255  # four beside each other
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1140px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ccc }
table { border-collapse: collapse } td, th { padding: .3em .9em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
figure { display: inline-block; margin: .5em .5em .5em 0; vertical-align: top }
figcaption { font-size: .85em; color: #555 }
img { max-width: 100% }
"""


def make_report(miniature: Miniature, table: dict[str, dict[str, list[float]]], notes: Iterable[str]) -> str:
    """Builds the page.

    Args:
        miniature: The finished run.
        table: Its results.
        notes: Sentences to stand under the table (versions, time).

    Returns:
        HTML with every image inlined. Images that a run did not make are left out.
    """
    work = miniature.work
    parts = [
        '<h1>ADDP transfer toolkit: the table in miniature</h1>',
        '<p>One tiny ADDP, pre-trained on generated shapes; every transfer row trained from its weights and from '
        f'random ones, with the same schedule and data, {_seeds(miniature.seeds)}. FID and IS are of a small '
        'network with random weights in place of Inception: they compare runs of this command, nothing else.</p>',
        _table(table, len(miniature.seeds)),
        *(f'<p>{html.escape(note)}</p>' for note in notes),
        '<h2>Pre-training</h2>',
        _figure(work / 'curves.png', 'Losses of tokenizer, token predictor and ADDP'),
    ]
    captions = dict(
        tokenizer='Tokenizer: images and their reconstructions',
        token_predictor='Token predictor: masked image and most likely tokens',
        addp='ADDP: input, mask, noisy image and prediction',
    )
    parts += [_figure(_last(work / name / 'figures'), caption) for name, caption in captions.items()]
    parts += [
        '<h2>Generated images</h2>',
        _figure(work / 'samples/grid.png', 'Drawn without any input', 420),
        _figure(work / 'samples/steps.png', 'How one of them emerges'),
    ]
    for task, title in (('det', 'Mask R-CNN'), ('seg', 'UperNet')):
        for init in INITS:
            overlays = sorted((work / f'{task}_{init}_predictions' / 'overlays').glob('*.png'))
            parts += [
                f'<h2>{title} from {"ADDP" if init == "addp" else "random"} weights</h2>',
                *(_figure(path, path.stem, _OVERLAY_PX) for path in overlays),
            ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>ADDP in miniature</title>'
        f'<style>{_STYLE}</style></head><body>\n' + '\n'.join(parts) + '\n</body></html>\n'
    )


def _table(table: dict[str, dict[str, list[float]]], num_seeds: int) -> str:
    rows = ['<tr><th>row</th><th>ADDP weights</th><th>random weights</th></tr>']
    for title, numbers in table.items():
        cells = []
        for init in ('addp', 'random'):
            values = numbers.get(init, [])
            text = as_text(values)
            every = ', '.join(f'{value:.1f}' for value in values) if len(values) > 1 else ''
            cells.append(f'<td title="{every}">{text}</td>')
        rows.append(f'<tr><td>{html.escape(title)}</td>{"".join(cells)}</tr>')
    note = '<p>Means; the single values appear when the pointer rests on a cell.</p>' if num_seeds > 1 else ''
    return f'<table>{"".join(rows)}</table>{note}'


def _seeds(seeds: Sequence[int]) -> str:
    return f'for seed {seeds[0]}' if len(seeds) == 1 else f'for the seeds {", ".join(map(str, seeds))}'


def _figure(path: Path | None, caption: str, width_px: int | None = None) -> str:
    """An image as part of the page, as wide as said and not wider than the page."""
    if path is None or not path.is_file():
        return ''
    with Image.open(path) as image:
        shown = image.convert('RGB')
    if shown.width > _MAX_WIDTH_PX:
        shown = shown.resize(
            (_MAX_WIDTH_PX, round(shown.height * _MAX_WIDTH_PX / shown.width)), Image.Resampling.LANCZOS
        )
    data = base64.b64encode(encode_png(shown)).decode('ascii')
    text = html.escape(caption)
    width = f' width="{width_px}"' if width_px else ''
    return (
        f'<figure><img alt="{text}"{width} src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
    )


def _last(folder: Path) -> Path | None:
    return max(folder.glob('iter_*.png'), default=None)
