"""Whether an exported file computes what the model in torch does, on photographs, and how much differs at most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from addp_backbone.export.onnx_model import OnnxModel, detections_of
from addp_backbone.export.plan import ExportError
from addp_backbone.export.preprocessing import padded_size
from addp_backbone.predict.predictor import read_source

MAX_BOX_PX = 0.5
MAX_SCORE = 0.01
MAX_PIXELS = 1e-3  # share of a class map, or of the masks' pixels
MAX_UNMATCHED = 0.01  # share of an image's detections: those at a threshold may pass it on one side only
MAX_FEATURE = 1e-3  # of a map's largest value


@dataclass(frozen=True)
class Difference:
    """One way in which two results differ.

    Attributes:
        name: What differs.
        value: How much.
        limit: More is too much.
        unit: Of both.
    """

    name: str
    value: float
    limit: float
    unit: str

    @property
    def too_large(self) -> bool:
        """Whether it is beyond the limit; nan is."""
        return not self.value <= self.limit

    def __str__(self) -> str:
        return f'{self.name} {self.value:.2g} {self.unit} (limit {self.limit:g})'


class Comparison:
    """A model in torch beside its exported file.

    Args:
        predictor: The model with its test pipeline.
        onnx_model: The file.
    """

    def __init__(self, predictor: Any, onnx_model: OnnxModel) -> None:
        self.predictor, self.onnx = predictor, onnx_model
        self.model = predictor.model

    def of_image(self, path: str | Path) -> list[Difference]:
        """Compares both on one photograph, which goes through the config's test pipeline once.

        Args:
            path: Image file.

        Returns:
            The differences.

        Raises:
            ExportError: If the photograph does not fit a file of fixed size.
        """
        return self.of_batch(*self.prepare(path))

    def prepare(self, path: str | Path) -> tuple[Tensor, list[Any]]:
        """What the config's test pipeline and the file's padding make of a photograph: (1, 3, H, W) and its sample.

        Raises:
            ExportError: If the photograph does not fit a file of fixed size.
        """
        pixels = read_source(path)
        shape = pixels.shape[:2]
        read = dict(img_path=str(path), img_id=0, img=pixels, img_shape=shape, ori_shape=shape)
        data = pseudo_collate([self.predictor.pipeline(read)])
        with torch.inference_mode():
            prepared = self.model.data_preprocessor(data, False)
            return self._pad(prepared['inputs'], path), prepared['data_samples']

    def of_batch(self, images: Tensor, samples: list[Any]) -> list[Difference]:
        """Compares both on a batch (B, 3, H, W) that is normalised and padded."""
        task = self.onnx.description['task']
        with torch.inference_mode():
            if task == 'detection':
                return self._detections(images, samples)
            if task == 'segmentation':
                return self._logits(images, samples)
            return self._maps(images)

    def _pad(self, images: Tensor, path: str | Path) -> Tensor:
        height, width = images.shape[-2:]
        wanted = padded_size((height, width), self.onnx.description)
        if wanted[0] < height or wanted[1] < width:
            raise ExportError(
                f'{path} has {height} x {width} px after the test pipeline, but the file takes '
                f'{wanted[0]} x {wanted[1]}: export with a larger --size'
            )
        return F.pad(images, (0, wanted[1] - width, 0, wanted[0] - height))

    def _maps(self, images: Tensor) -> list[Difference]:
        wanted = self.model.backbone(images)
        if self.onnx.description['part'] == 'neck':
            wanted = self.model.neck(wanted)
        got = self.onnx.run(images.numpy())
        return [
            Difference(name, _relative(values, maps.numpy()), MAX_FEATURE, 'of the largest value')
            for (name, values), maps in zip(got.items(), wanted, strict=True)
        ]

    def _logits(self, images: Tensor, samples: list[Any]) -> list[Difference]:
        wanted = self.model.inference(images, [dict(sample.metainfo) for sample in samples]).numpy()
        got = self.onnx.run(images.numpy())
        other = float((got['class_map'] != wanted.argmax(axis=1)).mean())
        return [
            Difference('logits', _relative(got['logits'], wanted), MAX_FEATURE, 'of the largest value'),
            Difference('class map', other, MAX_PIXELS, 'of the pixels'),
        ]

    def _detections(self, images: Tensor, samples: list[Any]) -> list[Difference]:
        results = self.model.predict(images, samples, rescale=False)
        sizes = [tuple(sample.img_shape[:2]) for sample in samples]
        got = self.onnx.run(images.numpy(), sizes)
        threshold = self.onnx.description['mask_threshold']
        found: list[Difference] = []
        for index, (result, size) in enumerate(zip(results, sizes, strict=True)):
            found += compare_detections(detections_of(got, index, size, size, threshold), result.pred_instances)
        return largest(found)


def compare_detections(got: Any, wanted: Any) -> list[Difference]:
    """Compares an image's detections.

    Args:
        got: :class:`ArrayDetections`.
        wanted: mmdet's instances.

    Returns:
        Differences of boxes, scores and masks over the pairs of equal class that overlap most, and the share of
        detections without a partner within :data:`MAX_BOX_PX` and :data:`MAX_SCORE`.
    """
    boxes, scores, labels = (getattr(wanted, name).numpy() for name in ('bboxes', 'scores', 'labels'))
    pairs = match(got.boxes, got.scores, got.labels, boxes, scores, labels)
    total = max(len(got.boxes), len(boxes))
    close = [
        (i, j)
        for i, j in pairs
        if np.abs(got.boxes[i] - boxes[j]).max() <= MAX_BOX_PX and abs(got.scores[i] - scores[j]) <= MAX_SCORE
    ]
    mine, theirs = (np.array(side, int) for side in (zip(*close, strict=True) if close else ((), ())))
    differences = [
        Difference('boxes', _largest(got.boxes[mine] - boxes[theirs]), MAX_BOX_PX, 'px'),
        Difference('scores', _largest(got.scores[mine] - scores[theirs]), MAX_SCORE, ''),
        Difference('unmatched', 1 - len(close) / total if total else 0.0, MAX_UNMATCHED, 'of the detections'),
    ]
    if got.masks is not None and 'masks' in wanted and len(mine):
        other = got.masks[mine] != np.asarray(wanted.masks)[theirs]
        differences.append(Difference('masks', float(other.mean()), MAX_PIXELS, 'of the pixels'))
    return differences


def match(
    boxes_a: NDArray[Any],
    scores_a: NDArray[Any],
    labels_a: NDArray[Any],
    boxes_b: NDArray[Any],
    scores_b: NDArray[Any],
    labels_b: NDArray[Any],
) -> list[tuple[int, int]]:
    """Pairs detections of equal class, each with the nearest that is left, by box and score."""
    pairs: list[tuple[int, int]] = []
    free = np.ones(len(boxes_b), bool)
    for i in range(len(boxes_a)):
        candidates = np.flatnonzero(free & (labels_b == labels_a[i]))
        if len(candidates):
            distance = np.abs(boxes_b[candidates] - boxes_a[i]).max(axis=1)
            distance = distance + np.abs(scores_b[candidates] - scores_a[i])
            nearest = int(candidates[distance.argmin()])
            free[nearest] = False
            pairs.append((i, nearest))
    return pairs


def largest(differences: Iterable[Difference]) -> list[Difference]:
    """The largest difference of each name."""
    found: dict[str, Difference] = {}
    for one in differences:
        if one.name not in found or not one.value <= found[one.name].value:
            found[one.name] = one
    return list(found.values())


def _largest(values: NDArray[Any]) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


def _relative(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-12))
