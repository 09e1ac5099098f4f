"""Top-k accuracy over any number of processes; no image counts twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """The percentage of images whose true class is among the k most probable ones: ``top1``, ``top5``.

    With several processes samplers repeat images to give each process the same number; an image is counted once, by its
    index in the data set. A k that is not less than the number of classes is meaningless and left out.

    Args:
        topk: Values of k, each at least 1.
        prefix: Prefix of the metric names, before a slash; None for 'accuracy'.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1, 5), prefix: str | None = None) -> None:
        super().__init__(prefix=prefix)
        if not topk or min(topk) < 1:
            raise ValueError(f'topk must be at least 1, got {tuple(topk)}')
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Records each image's index, the rank of its true class (0 = most probable) and the number of classes.

        Args:
            data_batch: Unused; part of mmengine's interface.
            data_samples: Predictions with ``sample_idx``, ``gt_label`` ((1,) int64) and ``pred_scores`` ((K,) float).
        """
        for sample in data_samples:
            if 'gt_label' not in sample:
                raise ValueError("accuracy needs labels: set labels=True in the val and test data sets' config")
            scores = sample['pred_scores']
            label = int(sample['gt_label'])
            if label >= len(scores):
                raise ValueError(
                    f'{sample.get("img_path", "an image")} has label {label}, but the model has {len(scores)} classes: '
                    'train and val data disagree, or model.num_classes is wrong'
                )
            order = scores.argsort(descending=True, stable=True)
            # Scores that are not finite have no order: such an image counts as wrong.
            rank = int((order == label).nonzero()) if bool(torch.isfinite(scores).all()) else len(scores)
            self.results.append((int(sample['sample_idx']), rank, len(scores)))

    def evaluate(self, size: int) -> dict[str, float]:
        """Gathers the records of all processes; every process gets the same result.

        Args:
            size: Number of images in the data set.

        Raises:
            RuntimeError: If images of the data set were left out.
        """
        gathered = {result[0]: result for part in all_gather_object(self.results) for result in part}
        self.results.clear()
        if len(gathered) != size:
            raise RuntimeError(
                f'{len(gathered)} different images were classified, but the data set has {size}: the sampler of '
                "val_dataloader and test_dataloader must give each one, as dict(type='DefaultSampler', shuffle=False) "
                'does'
            )
        metrics = self.compute_metrics(list(gathered.values()))
        return {f'{self.prefix}/{name}' if self.prefix else name: value for name, value in metrics.items()}

    def compute_metrics(self, results: list[tuple[int, int, int]]) -> dict[str, float]:
        """Percentages from (index, rank of the true class, number of classes) of all images."""
        ranks = np.array([rank for _, rank, _ in results])
        num_classes = results[0][2]
        metrics = {f'top{k}': round(100 * float((ranks < k).mean()), 4) for k in self.topk if k < num_classes}
        if not metrics:
            print_log(f'no accuracy: topk={self.topk}, but there are {num_classes} classes', logger='current', level=30)
        return metrics
