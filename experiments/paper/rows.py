"""The rows of the paper's table.

Each has its published value, which is here and nowhere else in code, and the key of our own in an evaluation's file.
"""

from __future__ import annotations

from experiments.rows import Row

GENERATION, FINE_TUNING, LINEAR, DETECTION, SEGMENTATION = TASKS = (
    'generation',
    'fine-tuning',
    'linear probe',
    'detection',
    'segmentation',
)
DENSE_TASKS = (DETECTION, SEGMENTATION)

ROWS = {
    'fid': Row('FID', GENERATION, ('metrics', 'frechet_inception_distance')),
    'is': Row('IS', GENERATION, ('metrics', 'inception_score_mean')),
    'top1': Row('top-1', FINE_TUNING, ('accuracy/top1',), data='ImageNet'),
    'linear': Row('top-1, linear probe', LINEAR, ('accuracy/top1',), data='ImageNet'),
    'ap': Row('AP box', DETECTION, ('coco/bbox_mAP',), factor=100, data='COCO'),
    'miou': Row('mIoU', SEGMENTATION, ('mIoU',), data='ADE20K'),
}
PAPER_ROWS = ('fid', 'is', 'top1', 'ap', 'miou')  # the linear probe has no published value that we know of

PUBLISHED_SOURCE = 'ADDP (ICLR 2024), arXiv 2306.05423'
PUBLISHED: dict[str, dict[str, float]] = {
    'base': {'fid': 8.9, 'is': 95.3, 'top1': 83.9, 'ap': 51.7, 'miou': 48.1},
    'large': {'fid': 7.6, 'is': 105.1, 'top1': 85.9, 'ap': 54.6, 'miou': 54.3},
}
