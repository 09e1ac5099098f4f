"""``tools/test.py --format-only``: predictions for a test set that has no labels, as servers want them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from addp_backbone.files.images import write_png
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.show_dir import path_in_dataset

ADVICE = '--format-only writes predictions for data without labels'


@METRICS.register_module()
class LabelMapFiles(BaseMetric):
    """Writes each image's class map as PNG, in the convention of the data set's own masks; measures nothing.

    Args:
        folder: Where they go, in the folders of the data set.
        image_dir: The data set's folder of images.
        collect_device: 'cpu' or 'gpu', through which processes tell their numbers of files.
    """

    def __init__(self, folder: str, image_dir: str, collect_device: str = 'cpu') -> None:
        super().__init__(collect_device=collect_device)
        self.folder, self.image_dir = Path(folder), Path(image_dir)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Writes the maps of a batch."""
        for sample in data_samples:
            values = sample['pred_sem_seg']['data'].squeeze(0).cpu().numpy().astype(np.int64)
            values += bool(sample.get('reduce_zero_label'))  # 0 is void in the files
            inside = path_in_dataset(sample['img_path'], [self.image_dir])
            dtype = np.uint8 if len(self.dataset_meta['classes']) < 256 else np.uint16
            write_png(values.astype(dtype), self.folder / inside.with_suffix('.png'))
            self.results.append(1)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Nothing: there are no labels."""
        return {}


def check_labels(cfg: Config) -> None:
    """Looks whether a segmentation test set has masks; COCO files are checked when they are read.

    Raises:
        LaunchError: If it has none.
    """
    dataset = cfg.test_dataloader.dataset
    prefixes = dataset.get('data_prefix') or {}
    if cfg.get('default_scope') != 'mmseg' or 'datasets' in dataset or 'dataset' in dataset:
        return
    folder = Path(dataset.get('data_root') or '', prefixes.get('seg_map_path') or '')
    if not prefixes.get('seg_map_path') or not folder.exists():
        raise LaunchError(
            f'test_dataloader.dataset.data_prefix.seg_map_path is {prefixes.get("seg_map_path")!r}'
            + (f' under {dataset.data_root!r}' if dataset.get('data_root') else '')
            + f': there are no masks to compare with. Set it, or {ADVICE}'
        )


def format_only(cfg: Config, target: Path) -> str:
    """Makes testing write predictions and measure nothing; changes ``cfg``.

    Args:
        cfg: Config of a detector or a segmentor.
        target: Detections go into ``TARGET.bbox.json`` and ``TARGET.segm.json`` (COCO results with the file's image and
            category ids), class maps into the folder ``TARGET``.

    Returns:
        What is written, for people.

    Raises:
        LaunchError: If the task has no such files.
    """
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline = without_annotations(dataset.pipeline)
    if cfg.get('default_scope') == 'mmseg':
        prefixes = dict(dataset.get('data_prefix') or {})
        prefixes.pop('seg_map_path', None)
        dataset.data_prefix = prefixes
        image_dir = Path(dataset.get('data_root') or '', prefixes.get('img_path') or '')
        cfg.test_evaluator = dict(
            type='LabelMapFiles', folder=str(target), image_dir=str(image_dir), _scope_='mmengine'
        )
        zero = 'void' if dataset.get('reduce_zero_label', dataset.type == 'ADE20KDataset') else 'the first class'
        return f'{target}/**/*.png (0 is {zero})'
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    kinds: list[str] = []
    for evaluator in evaluators:
        if str(evaluator.type).rpartition('.')[2] not in ('QuickCocoMetric', 'CocoMetric'):
            raise LaunchError(
                f'--format-only writes COCO results and class maps, not what {evaluator.type} measures; '
                'tools/predict.py predicts for any images'
            )
        evaluator.update(format_only=True, outfile_prefix=str(target))
        metric = evaluator.get('metric', 'bbox')
        kinds += [metric] if isinstance(metric, str) else metric
    return ', '.join(f'{target}.{kind}.json' for kind in kinds)


def without_annotations(steps: Any) -> list[Any]:
    """A test pipeline without the steps that need annotations, at any depth (test-time augmentation nests)."""
    kept: list[Any] = []
    for step in steps:
        if isinstance(step, (list, tuple)):
            kept += [nested] if (nested := without_annotations(step)) else []
        elif 'transforms' in step:
            kept.append({**step, 'transforms': without_annotations(step['transforms'])})
        elif 'Annotations' not in str(step['type']):
            kept.append(dict(step))
    return kept
