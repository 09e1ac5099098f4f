"""Areas of every image of a segmentation: what mIoU, and intervals of it, follow from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from numpy.typing import NDArray

from addp_backbone.files.image_results import write_image_results
from addp_backbone.files.mask_areas import count_areas
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.show_dir import path_in_dataset

AREAS = 'areas'  # the measure in the file


@METRICS.register_module()
class ImageAreas(BaseMetric):
    """Writes the areas of every image; measures nothing itself.

    Args:
        file: Gets them (``.npz``): ``images`` (paths in the data set) and ``areas`` (images, 3, classes), see

            :func:`addp_backbone.files.mask_areas.count_areas`.
        image_dir: The data set's folder of images.
        collect_device: 'cpu' or 'gpu', through which processes exchange results.
    """

    def __init__(self, file: str, image_dir: str, collect_device: str = 'cpu') -> None:
        super().__init__(collect_device=collect_device)
        self.file, self.image_dir = file, Path(image_dir)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Counts the areas of a batch."""
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            predicted, labels = (sample[name]['data'].squeeze(0) for name in ('pred_sem_seg', 'gt_sem_seg'))
            inside = path_in_dataset(sample['img_path'], [self.image_dir])
            areas = count_areas(predicted.long(), labels.to(predicted.device), num_classes)
            self.results.append((inside.as_posix(), areas))

    def compute_metrics(self, results: list[tuple[str, NDArray[np.int64]]]) -> dict[str, float]:
        """Writes the file; no figures."""
        ordered = sorted(results, key=lambda result: result[0])
        arrays = dict(images=np.array([name for name, _ in ordered]), areas=np.stack([areas for _, areas in ordered]))
        write_image_results(self.file, {AREAS: arrays})
        return {}


def keep_image_results(cfg: Config, file: str) -> None:
    """Makes testing write what it finds in each image; changes ``cfg``.

    Args:
        cfg: Config of a detector or a segmentor.
        file: Where to, ``.npz``.

    Raises:
        LaunchError: If the ending is another, or the config measures neither AP nor mIoU.
    """
    if not file.endswith('.npz'):
        raise LaunchError(f'--per-image {file}: wanted a file that ends in .npz')
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    kinds = [str(evaluator.type).rpartition('.')[2] for evaluator in evaluators]
    if kinds.count('QuickCocoMetric') == 1:
        evaluators[kinds.index('QuickCocoMetric')].matches_file = file
    elif kinds.count('IoUMetric') == 1:
        dataset = cfg.test_dataloader.dataset
        prefixes = dataset.get('data_prefix') or {}
        image_dir = Path(dataset.get('data_root') or '', prefixes.get('img_path') or '')
        areas = dict(type='ImageAreas', file=file, image_dir=str(image_dir), _scope_='mmengine')
        cfg.test_evaluator = [*evaluators, areas]
    else:
        raise LaunchError(
            f'--per-image keeps what AP (QuickCocoMetric) and mIoU (IoUMetric) follow from, not what '
            f'{", ".join(kinds)} measure'
        )
