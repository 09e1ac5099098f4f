"""Which detections of each image hit an object: what AP follows from, for any draw of images (bootstrap)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from addp_backbone.detection.coco_metric import CocoEvaluation

_RECALLS = np.linspace(0, 1, 101)  # COCO's
_CHUNK = 50  # draws at a time


@dataclass(frozen=True)
class ImageMatches:
    """The matching of one data set's detections, over objects of all sizes.

    Attributes:
        images: Ids of the images, as text.
        image: (N,) index of each detection's image.
        label: (N,) index of its class.
        score: (N,).
        hits: (N, thresholds) bool: matched to an object, one for each IoU threshold.
        left_out: (N, thresholds) bool: matched to a crowd, so that it counts neither way.
        num_objects: (images, classes), crowds left out.
    """

    images: tuple[str, ...]
    image: NDArray[np.int32]
    label: NDArray[np.int32]
    score: NDArray[np.float64]
    hits: NDArray[np.bool_]
    left_out: NDArray[np.bool_]
    num_objects: NDArray[np.int64]

    def scores(self, counts: NDArray[np.number]) -> NDArray[np.float64]:
        """AP of draws of images, each scored as a whole data set.

        Args:
            counts: (draws, images) how often each image was drawn.

        Returns:
            (draws,) in per cent: mean over IoU thresholds and the classes that have objects in the draw, NaN if none
            has. For one of every image COCO's AP. Of equal scores within one image the copies stay together.
        """
        return np.concatenate([self._scores(counts[start : start + _CHUNK]) for start in range(0, len(counts), _CHUNK)])

    def _scores(self, counts: NDArray[np.number]) -> NDArray[np.float64]:
        num_classes = self.num_objects.shape[1]
        by_class = np.full((num_classes, len(counts)), np.nan)
        for label in range(num_classes):
            objects = counts @ self.num_objects[:, label]
            chosen = np.flatnonzero(self.label == label)
            chosen = chosen[np.argsort(-self.score[chosen], kind='mergesort')]
            drawn = counts[:, self.image[chosen]].astype(np.float64)
            by_class[label] = _average_precision(drawn, self.hits[chosen], self.left_out[chosen], objects)
        known = ~np.isnan(by_class)
        total = np.where(known, by_class, 0).sum(axis=0)
        return np.divide(100 * total, known.sum(axis=0), out=np.full(len(counts), np.nan), where=known.any(axis=0))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For ``numpy.savez``; :meth:`of_arrays` reads them."""
        return {name: np.array(value) for name, value in self.__dict__.items()}

    @staticmethod
    def of_arrays(arrays: Mapping[str, NDArray[Any]]) -> ImageMatches:
        """What :meth:`arrays` gave.

        Raises:
            KeyError: If something is missing.
        """
        fields: dict[str, Any] = {name: arrays[name] for name in ImageMatches.__dataclass_fields__}
        fields['images'] = tuple(map(str, fields['images']))
        return ImageMatches(**fields)


def _average_precision(
    drawn: NDArray[np.float64],
    hits: NDArray[np.bool_],
    left_out: NDArray[np.bool_],
    objects: NDArray[np.number],
) -> NDArray[np.float64]:
    """AP of one class in each draw, in [0, 1], mean over thresholds; NaN without objects.

    Args:
        drawn: (draws, N) how often each detection was drawn, best score first.
        hits: (N, thresholds).
        left_out: (N, thresholds).
        objects: (draws,) number of objects.
    """
    result = np.zeros(len(drawn))
    seen = np.cumsum(drawn, axis=1)
    for threshold in range(hits.shape[1]):
        where = np.flatnonzero(hits[:, threshold])  # recall grows, and precision is highest, at hits alone
        counted = seen
        if left_out[:, threshold].any():
            counted = np.cumsum(drawn * ~left_out[:, threshold], axis=1)
        true = np.cumsum(drawn[:, where], axis=1)
        precision = true / np.maximum(counted[:, where], np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        best = np.concatenate((best, np.zeros((len(drawn), 1))), axis=1)  # recalls that are never reached
        for draw, count in enumerate(objects):
            if count:
                reached = np.searchsorted(true[draw] / count, _RECALLS, side='left')
                result[draw] += best[draw, reached].mean()
    return np.where(objects > 0, result / hits.shape[1], np.nan)


def match_image(
    ious: NDArray[np.float64], crowds: NDArray[np.bool_], thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Matches the detections of an image and class with its objects, as COCO does.

    The best detection chooses first, the free object with the highest IoU (of equal ones the last); a crowd only if it
    reaches no object, and a crowd stays free.

    Args:
        ious: (detections, objects), best score first.
        crowds: (objects,).
        thresholds: (thresholds,).

    Returns:
        (detections, thresholds) each: matched to an object; matched to a crowd.
    """
    shape = len(ious), len(thresholds)
    hits, left_out = np.zeros(shape, bool), np.zeros(shape, bool)
    if not len(crowds):
        return hits, left_out
    free = np.ones((len(thresholds), len(crowds)), bool)
    for index, row in enumerate(ious):
        reached = free & (row >= np.minimum(thresholds, 1 - 1e-10)[:, None])
        objects = reached & ~crowds
        ranked = np.where(objects, row, -1.0)[:, ::-1]
        best = len(crowds) - 1 - ranked.argmax(axis=1)
        hit = objects.any(axis=1)
        hits[index] = hit
        left_out[index] = ~hit & (reached & crowds).any(axis=1)
        free[hit, best[hit]] = False
    return hits, left_out


def matches_of(evaluation: CocoEvaluation, images: Sequence[str]) -> ImageMatches:
    """The matching of an evaluation that has run.

    Args:
        evaluation: Of images and classes that are numbered from 1.
        images: Ids of the images, in the order of their numbers.
    """
    thresholds, most = np.asarray(evaluation.params.iouThrs), evaluation.params.maxDets[-1]
    num_objects = np.zeros((len(images), len(evaluation.params.catIds)), np.int64)
    parts: list[tuple[int, int, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]] = []
    for image in evaluation.params.imgIds:
        for label in evaluation.params.catIds:
            truth, found = evaluation.objects(image, label), evaluation.detected_scores(image, label)
            crowds = np.array([bool(record.get('iscrowd', 0)) for record in truth], bool)
            num_objects[image - 1, label - 1] = (~crowds).sum()
            scores = np.sort(-found, kind='mergesort')[:most]
            if len(scores):
                ious = np.asarray(evaluation.ious[image, label] if truth else np.zeros((len(scores), 0)))
                parts.append((image - 1, label - 1, -scores, *match_image(ious, crowds, thresholds)))
    sizes = [len(part[2]) for part in parts]

    def joined(position: int, empty: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([part[position] for part in parts]) if parts else empty

    nothing = np.zeros((0, len(thresholds)), bool)
    return ImageMatches(
        tuple(images),
        np.repeat([part[0] for part in parts], sizes).astype(np.int32),
        np.repeat([part[1] for part in parts], sizes).astype(np.int32),
        joined(2, np.zeros(0)),
        joined(3, nothing),
        joined(4, nothing),
        num_objects,
    )
