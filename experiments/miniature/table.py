"""The table in miniature: its rows, and how they are read from what the evaluations wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import mean, stdev

from experiments.miniature.plan import INITS, Miniature
from experiments.rows import Row
from pretrain.evaluation.feature_extractors import RANDOM_CONVOLUTIONS
from pretrain.evaluation.fidelity import name_of

GENERATION_ROWS = (
    Row(
        'Generation: Fréchet distance of random convolutions (lower is better)',
        'generation',
        ('frechet_inception_distance',),
    ),
    Row('Generation: class score of random convolutions', 'generation', ('inception_score_mean',)),
)
TRANSFER_ROWS = (
    Row('Classification, fine-tuned: top-1 (%)', 'finetune', ('accuracy/top1',)),
    Row('Classification, linear probe: top-1 (%)', 'linear', ('accuracy/top1',)),
    Row('Mask R-CNN: AP box', 'det', ('coco/bbox_mAP',), 100.0),
    Row('Mask R-CNN: AP50 box', 'det', ('coco/bbox_mAP_50',), 100.0),
    Row('Mask R-CNN: AP mask', 'det', ('coco/segm_mAP',), 100.0),
    Row('UperNet: mIoU', 'seg', ('mIoU',)),
)
PROBE_ROW = 'Frozen features of the last block, linear probe of patches: mIoU'


def read_results(miniature: Miniature) -> dict[str, dict[str, list[float]]]:
    """Reads every result file: row title -> initialisation -> one number for each seed.

    Raises:
        OSError, KeyError: If an evaluation has not finished.
    """
    table: dict[str, dict[str, list[float]]] = {}
    generation = json.loads((miniature.work / 'results' / 'generation.json').read_text(encoding='utf-8'))['metrics']
    for row in GENERATION_ROWS:
        table[row.title] = {'addp': [generation[name_of(row.key[-1], RANDOM_CONVOLUTIONS)] * row.factor]}
    for row in TRANSFER_ROWS:
        table[row.title] = {
            init: [_read(miniature, row, init, seed) * row.factor for seed in miniature.seeds] for init in INITS
        }
    table[PROBE_ROW] = {init: [_read_probe(miniature, init, seed) for seed in miniature.seeds] for init in INITS}
    return table


def _read_probe(miniature: Miniature, init: str, seed: int) -> float:
    rows = json.loads(miniature.probe_file(seed).read_text(encoding='utf-8'))['rows']
    return next(float(row['mIoU']) for row in rows if row['backbone'] == miniature.probed_backbone(init))


def _read(miniature: Miniature, row: Row, init: str, seed: int) -> float:
    metrics = json.loads(miniature.result_file(row.task, init, seed).read_text(encoding='utf-8'))
    return metrics[row.key[-1]] if metrics else 0.0  # no metrics: the detector predicted nothing at all


def as_markdown(results: dict[str, dict[str, list[float]]]) -> str:
    """The table as Markdown; mean and standard deviation where there are several seeds."""
    lines = ['| measured on generated shapes | ADDP weights | random weights |', '|---|---|---|']
    lines += [
        f'| {title} | {as_text(numbers.get("addp"))} | {as_text(numbers.get("random"))} |'
        for title, numbers in results.items()
    ]
    return '\n'.join(lines) + '\n'


def as_text(values: Sequence[float] | None) -> str:
    """Mean, and standard deviation if there are several; small numbers with three decimals."""
    if not values:
        return ''
    decimals = 1 if abs(mean(values)) >= 5 else 3
    return f'{mean(values):.{decimals}f}' + (f' ± {stdev(values):.{decimals}f}' if len(values) > 1 else '')
