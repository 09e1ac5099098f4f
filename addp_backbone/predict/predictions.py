"""What a model says about an image: detections, a class map or classes, as JSON and drawn on the image.

A further task is one more class with ``from_sample``, ``to_json``, ``draw`` and ``extra_files``, and one entry in
:data:`KINDS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_masks

from addp_backbone.files.images import encode_png
from addp_backbone.files.run_length import encode_mask
from addp_backbone.predict.overlays import RGBImage, draw_class_map, draw_instances, draw_probabilities

NUM_CLASSES_SHOWN = 5  # of a classifier's


@dataclass(frozen=True)
class ClassInfo:
    """The classes a model knows.

    Attributes:
        names: Class names, in the order of the model's outputs.
        palette: An RGB colour for each.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]


class Prediction(Protocol):
    """What the predictions of all tasks have in common."""

    @property
    def width(self) -> int:
        """The image's width in pixels."""

    @property
    def height(self) -> int:
        """The image's height in pixels."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the overlay, as plain Python values."""

    def draw(self, image: RGBImage) -> RGBImage:
        """An overlay on the (height, width, 3) RGB image."""

    def extra_files(self) -> dict[str, bytes]:
        """Folder name -> content of a PNG, for what JSON is too clumsy for."""


class _Decoded(Sequence[NDArray[np.bool_]]):
    """The masks of run-length codes, each made when it is asked for: one at a time is in memory."""

    def __init__(self, codes: list[dict[str, Any]]) -> None:
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> Any:
        return coco_masks.decode(self.codes[index]).astype(bool)

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Detections:
    """Objects in an image, the surest first.

    Attributes:
        width: The image's width in pixels.
        height: Its height.
        boxes: (N, 4) float32 x1, y1, x2, y2 in pixels.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64.
        masks: N run-length codes (COCO; ``pycocotools.mask.decode`` turns one into pixels), or None.
        classes: The classes.
    """

    key: ClassVar[str] = 'pred_instances'
    width: int
    height: int
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: list[dict[str, Any]] | None
    classes: ClassInfo

    @classmethod
    def from_sample(cls, sample: Any, classes: ClassInfo, score_thr: float) -> Detections:
        """Takes an mmdet data sample's instances that reach ``score_thr``."""
        height, width = sample.ori_shape[:2]
        instances = sample.pred_instances
        scores = instances.scores.float().cpu().numpy()
        order = np.argsort(-scores, kind='stable')
        order = order[scores[order] >= score_thr]
        masks = None
        if 'masks' in instances:  # codes, or (N, H, W), of which one at a time is copied
            masks = [
                m if isinstance(m, dict) else encode_mask(m.cpu().numpy())
                for m in map(instances.masks.__getitem__, order)
            ]
        return cls(
            int(width),
            int(height),
            instances.bboxes.float().cpu().numpy().reshape(-1, 4)[order],
            scores[order],
            instances.labels.long().cpu().numpy()[order],
            masks,
            classes,
        )

    def to_json(self) -> dict[str, Any]:
        """Objects as in COCO results, with the class name and the box's corners, too."""
        objects = []
        for i, (box, score, label) in enumerate(
            zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        ):
            x1, y1, x2, y2 = (round(v, 2) for v in box)
            record = {
                'category': self.classes.names[label],
                'label': label,
                'score': round(score, 4),
                'bbox': [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                'bbox_xyxy': [x1, y1, x2, y2],
            }
            if self.masks is not None:
                record['segmentation'] = self.masks[i]
            objects.append(record)
        return {'width': self.width, 'height': self.height, 'objects': objects}

    def to_coco(self, image_id: int | str, category_ids: Sequence[int | str]) -> list[dict[str, Any]]:
        """COCO results, unrounded, as pycocotools' ``loadRes`` takes them.

        Args:
            image_id: The image's id in the annotation file.
            category_ids: The category id of each class, in the order of the model's classes.
        """
        corners = self.boxes.astype(np.float64)
        boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1).tolist()
        return [
            {'image_id': image_id, 'category_id': category_ids[label], 'bbox': box, 'score': score}
            | ({} if self.masks is None else {'segmentation': self.masks[i]})
            for i, (box, score, label) in enumerate(zip(boxes, self.scores.tolist(), self.labels.tolist(), strict=True))
        ]

    def draw(self, image: RGBImage) -> RGBImage:
        """Boxes, masks, labels and scores."""
        masks = _Decoded(self.masks) if self.masks is not None else None
        return draw_instances(
            image, self.boxes, self.scores, self.labels, masks, self.classes.names, self.classes.palette
        )

    def extra_files(self) -> dict[str, bytes]:
        """None: masks are in the JSON."""
        return {}


@dataclass(frozen=True)
class ClassMap:
    """A class for every pixel.

    Attributes:
        width: The image's width in pixels.
        height: Its height.
        label_map: (height, width) uint8, or uint16 for over 256 classes: indices into the class names (0 = the first
            class, there is no void).
        classes: The classes.
    """

    key: ClassVar[str] = 'pred_sem_seg'
    width: int
    height: int
    label_map: NDArray[np.uint8] | NDArray[np.uint16]
    classes: ClassInfo

    @classmethod
    def from_sample(cls, sample: Any, classes: ClassInfo, score_thr: float) -> ClassMap:
        """Takes an mmseg data sample's class map; ``score_thr`` has no meaning here."""
        values = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
        label_map = values.astype(np.uint8 if len(classes.names) <= 256 else np.uint16)
        return cls(label_map.shape[1], label_map.shape[0], label_map, classes)

    def to_json(self) -> dict[str, Any]:
        """Each class's share of the pixels, the largest first."""
        shares = np.bincount(self.label_map.ravel(), minlength=len(self.classes.names)) / self.label_map.size
        order = np.argsort(-shares, kind='stable')
        return {
            'width': self.width,
            'height': self.height,
            'fractions': {self.classes.names[i]: round(float(shares[i]), 6) for i in order if shares[i] > 0},
        }

    def draw(self, image: RGBImage) -> RGBImage:
        """Colours and a legend."""
        return draw_class_map(image, self.label_map, self.classes.names, self.classes.palette)

    def extra_files(self) -> dict[str, bytes]:
        """The class map as a one-channel PNG."""
        return {'label_maps': encode_png(self.label_map)}


@dataclass(frozen=True)
class ClassRanking:
    """What an image shows: the five most probable classes (all, if there are fewer).

    Attributes:
        width: The image's width in pixels.
        height: Its height.
        labels: (k,) int64, the most probable first.
        scores: (k,) float32, their probabilities.
        classes: The classes.
    """

    key: ClassVar[str] = 'pred_scores'
    width: int
    height: int
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    classes: ClassInfo

    @classmethod
    def from_sample(cls, sample: Any, classes: ClassInfo, score_thr: float) -> ClassRanking:
        """Takes a classifier's probabilities; ``score_thr`` has no meaning here."""
        height, width = sample.ori_shape[:2]
        scores = sample.pred_scores.float().cpu().numpy()
        labels = np.argsort(-scores, kind='stable')[:NUM_CLASSES_SHOWN].astype(np.int64)
        return cls(int(width), int(height), labels, scores[labels], classes)

    def to_json(self) -> dict[str, Any]:
        """Classes with their probabilities, the most probable first."""
        return {
            'width': self.width,
            'height': self.height,
            'classes': [
                {'category': self.classes.names[label], 'label': int(label), 'score': round(float(score), 6)}
                for label, score in zip(self.labels, self.scores, strict=True)
            ],
        }

    def draw(self, image: RGBImage) -> RGBImage:
        """A legend."""
        return draw_probabilities(
            image,
            [self.classes.names[i] for i in self.labels],
            self.scores.tolist(),
            [self.classes.palette[i] for i in self.labels],
        )

    def extra_files(self) -> dict[str, bytes]:
        """None."""
        return {}


KINDS: Mapping[str, type[Detections] | type[ClassMap] | type[ClassRanking]] = {
    kind.key: kind for kind in (Detections, ClassMap, ClassRanking)
}


def prediction_from_sample(sample: Any, classes: ClassInfo, score_thr: float) -> Prediction:
    """Wraps what a model returned for one image.

    Raises:
        ValueError: If it holds no prediction of a known kind.
    """
    for key, kind in KINDS.items():
        if key in sample:
            return kind.from_sample(sample, classes, score_thr)
    raise ValueError(
        f'the model returned {sorted(sample.keys())}, wanted one of {sorted(KINDS)}: is the config that of a '
        'detector, a segmentor or a classifier?'
    )
