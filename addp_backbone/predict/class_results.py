"""Results of segmentors and classifiers: a class for every pixel, or the most probable classes of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from addp_backbone.files.images import encode_png
from addp_backbone.files.run_length import encode_mask
from addp_backbone.predict.class_info import ClassInfo, import_supervision
from addp_backbone.predict.overlays import RGBImage, draw_class_map, draw_probabilities

NUM_CLASSES_SHOWN = 5  # of a classifier's


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

    def to_coco(self, image_id: int | str, category_ids: Sequence[int | str]) -> list[dict[str, Any]]:
        """A record for each class that occurs, in the form of COCO-Stuff's results: its pixels as a run-length code.

        Args:
            image_id: The image's id.
            category_ids: The category id of each class, in the order of the model's classes.
        """
        return [
            {
                'image_id': image_id,
                'category_id': category_ids[label],
                'segmentation': encode_mask(self.label_map == label),
            }
            for label in np.unique(self.label_map).tolist()
        ]

    def to_supervision(self) -> Any:
        """``supervision.Detections`` with one mask for each class that occurs, without scores.

        Raises:
            ModuleNotFoundError: If supervision is not installed.
        """
        supervision = import_supervision()
        labels = np.unique(self.label_map)
        masks = self.label_map[None] == labels[:, None, None]
        names = np.array([self.classes.names[label] for label in labels], dtype=str)
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(masks).astype(np.float32),
            mask=masks,
            class_id=labels.astype(np.int64),
            data={'class_name': names},
        )

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

    def to_supervision(self) -> Any:
        """``supervision.Classifications`` of the classes shown.

        Raises:
            ModuleNotFoundError: If supervision is not installed.
        """
        supervision = import_supervision()
        return supervision.Classifications(class_id=self.labels.copy(), confidence=self.scores.copy())

    def extra_files(self) -> dict[str, bytes]:
        """None."""
        return {}
