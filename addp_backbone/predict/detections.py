"""Objects in an image: boxes, scores, labels and masks, and the forms in which other tools take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_masks

from addp_backbone.files.images import encode_png
from addp_backbone.files.run_length import encode_mask
from addp_backbone.predict.class_info import ClassInfo, import_supervision
from addp_backbone.predict.overlays import RGBImage, draw_instances


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
        at_limit: Whether the model reported as many objects as it reports at most, so that others may be missing.
    """

    key: ClassVar[str] = 'pred_instances'
    width: int
    height: int
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: list[dict[str, Any]] | None
    classes: ClassInfo
    at_limit: bool = False

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

    def instance_map(self) -> NDArray[np.uint16]:
        """(height, width) uint16: 0 where there is no object, k + 1 for the object k; the surest in front.

        Raises:
            ValueError: If there are no masks, or more objects than 16 bits can number.
        """
        if self.masks is None or len(self.masks) > np.iinfo(np.uint16).max:
            raise ValueError(
                'an instance map needs masks: this model has boxes only'
                if self.masks is None
                else f'{len(self.masks)} objects are more than an instance map of 16 bits can number'
            )
        numbers = np.zeros((self.height, self.width), np.uint16)
        for index in reversed(range(len(self.masks))):
            numbers[coco_masks.decode(self.masks[index]).view(bool)] = index + 1
        return numbers

    def to_supervision(self) -> Any:
        """``supervision.Detections``: ``xyxy``, ``mask``, ``confidence``, ``class_id``, and names in ``data``.

        Masks are all pixels then, (N, height, width) bool.

        Raises:
            ModuleNotFoundError: If supervision is not installed.
        """
        supervision = import_supervision()
        masks = None
        if self.masks is not None:
            masks = np.zeros((len(self.masks), self.height, self.width), bool)
            for index, code in enumerate(self.masks):
                masks[index] = coco_masks.decode(code).view(bool)
        names = np.array([self.classes.names[label] for label in self.labels], dtype=str)
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            mask=masks,
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={'class_name': names},
        )

    def extra_files(self) -> dict[str, bytes]:
        """The instance map as a PNG of 16 bits, where there are masks."""
        return {} if self.masks is None else {'instance_maps': encode_png(self.instance_map())}
