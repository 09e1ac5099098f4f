"""COCO's box and mask AP for mmdet, quicker than mmdet's metrics, with pycocotools' numbers.

``CocoEvaluation`` leaves matching and accumulation to faster-coco-eval (C++). What that spends around them is left out:
it unpacks every mask three times (area, box, run lengths), where a mask's area is needed always and its IoU only if its
class is in the image. ``QuickCocoMetric`` hands detections over as they are; mmdet's metrics write them to JSON and
read that again, once a kind of result.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCOeval_faster
from mmdet.evaluation import FasterCocoMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS
from pycocotools import mask as mask_codec
from pycocotools.coco import COCO

STATS = {
    name: place
    for place, name in enumerate(
        (
            'mAP',
            'mAP_50',
            'mAP_75',
            'mAP_s',
            'mAP_m',
            'mAP_l',
            'AR@100',
            'AR@300',
            'AR@1000',
            'AR_s@1000',
            'AR_m@1000',
            'AR_l@1000',
        )
    )
}
MASKS_AT_ONCE = 200  # pycocotools takes no more than 255 for areas


class CocoEvaluation(COCOeval_faster):
    """COCO evaluation of detections given as a list.

    Call ``run()``; ``stats`` then has pycocotools' twelve numbers, ``eval['precision']`` (IoU thresholds, recalls,
    classes, sizes, counts). ``params`` are pycocotools' and may be changed before, except ``useCats``: classes are
    matched apart.

    Args:
        ground_truth: The annotations.
        detections: Dicts with ``image_id``, ``category_id``, ``score``, and ``bbox`` (x, y, width, height) or
            ``segmentation`` (compressed RLE), which pycocotools' ``loadRes`` takes too. They are left as they are.
        kind: ``'bbox'`` or ``'segm'``.
    """

    def __init__(self, ground_truth: COCO, detections: Sequence[dict[str, Any]], kind: str) -> None:
        if kind not in ('bbox', 'segm'):
            raise ValueError(f"kind is {kind!r}, wanted 'bbox' or 'segm'")
        super().__init__(ground_truth, iouType=kind)
        self.detections = detections

    def _prepare(self) -> None:
        """Sorts annotations and detections by image and class, and tells the C++ part what it needs of them."""
        p = self.params
        if not p.useCats:
            raise ValueError(
                'useCats is 0, wanted 1: classes are matched apart here; faster_coco_eval.COCOeval_faster ignores classes'
            )
        self.gt_dataset.clean()
        self.dt_dataset.clean()
        annotations = self.cocoGt.loadAnns(self.cocoGt.getAnnIds(imgIds=p.imgIds, catIds=p.catIds))
        images, classes = set(p.imgIds), set(p.catIds)
        unknown = {detection['image_id'] for detection in self.detections} - set(self.cocoGt.imgs)
        if unknown:
            raise ValueError(
                f'detections are of images that the annotation file does not have, such as {sorted(unknown)[:3]}'
            )
        chosen = [
            (number, detection)
            for number, detection in enumerate(self.detections, start=1)
            if detection['image_id'] in images and detection['category_id'] in classes
        ]
        self._truth, self._found = defaultdict(list), defaultdict(list)
        for annotation in annotations:
            crowd = int(annotation.get('iscrowd', 0))
            lean = dict(id=annotation['id'], area=annotation['area'], iscrowd=crowd, ignore=crowd)
            self.gt_dataset.append_ref(annotation['image_id'], annotation['category_id'], lean)
            self._truth[annotation['image_id'], annotation['category_id']].append(annotation)
        for (number, detection), area in zip(chosen, self._areas([detection for _, detection in chosen]), strict=True):
            lean = dict(id=number, area=area, iscrowd=0, ignore=0, score=detection['score'])
            self.dt_dataset.append_ref(detection['image_id'], detection['category_id'], lean)
            self._found[detection['image_id'], detection['category_id']].append(detection)
        self._nonempty_iou_pairs = self._truth.keys() & self._found.keys()

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray:  # noqa: N802  (the base class' names)
        """IoU of an image's detections of one class, best score first, with its objects of that class; (detections, objects)."""
        found = self._found[imgId, catId]
        order = np.argsort([-detection['score'] for detection in found], kind='mergesort')[: self.params.maxDets[-1]]
        truth = self._truth[imgId, catId]
        if self.params.iouType == 'bbox':
            ours, theirs = [found[i]['bbox'] for i in order], [annotation['bbox'] for annotation in truth]
        else:
            ours, theirs = (
                [found[i]['segmentation'] for i in order],
                [self.cocoGt.annToRLE(annotation) for annotation in truth],
            )
        return mask_codec.iou(ours, theirs, [int(annotation.get('iscrowd', 0)) for annotation in truth])

    def _areas(self, detections: list[dict[str, Any]]) -> list[float]:
        if self.params.iouType == 'bbox':
            return [detection['bbox'][2] * detection['bbox'][3] for detection in detections]
        parts = [
            mask_codec.area([detection['segmentation'] for detection in detections[start : start + MASKS_AT_ONCE]])
            for start in range(0, len(detections), MASKS_AT_ONCE)
        ]
        return np.concatenate(parts).tolist() if parts else []


@METRICS.register_module()
class QuickCocoMetric(FasterCocoMetric):
    """mmdet's ``CocoMetric`` for box and mask AP: the same arguments, the same results.

    Where results are to be written (``outfile_prefix``, ``format_only``), the metric is a proposal's, or there is no
    ``ann_file``, mmdet's own ``FasterCocoMetric`` does the work.
    """

    def compute_metrics(self, results: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
        """The figures of all images' results, which ``process`` made."""
        if self.outfile_prefix is not None or self._coco_api is None or not {*self.metrics} <= {'bbox', 'segm'}:
            return super().compute_metrics(results)
        self.cat_ids = self._coco_api.getCatIds(catNms=self.dataset_meta['classes'])
        self.img_ids = self._coco_api.getImgIds()
        logger = MMLogger.get_current_instance()
        figures: dict[str, float] = {}
        for kind in self.metrics:
            detections = [detection for _, prediction in results for detection in self._detections(prediction, kind)]
            if not detections:
                logger.error('The testing results of the whole dataset are empty.')
                break
            evaluation = CocoEvaluation(self._coco_api, detections, kind)
            evaluation.params.catIds, evaluation.params.imgIds = self.cat_ids, self.img_ids
            evaluation.params.maxDets, evaluation.params.iouThrs = list(self.proposal_nums), self.iou_thrs
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation.run()
            if self.classwise:
                figures.update(self._figures_of_classes(evaluation.eval['precision'], kind))
            for name in self.metric_items or list(STATS)[:6]:
                figures[f'{kind}_{name}'] = float(f'{round(evaluation.stats[STATS[name]], 3)}')
            logger.info(f'{kind}_mAP_copypaste: ' + ' '.join(f'{value:.3f}' for value in evaluation.stats[:6]))
        return figures

    def _detections(self, prediction: dict[str, Any], kind: str) -> list[dict[str, Any]]:
        """One image's detections as COCO has them."""
        if kind == 'segm' and 'masks' not in prediction:
            raise KeyError("metric 'segm' wants masks, but the model predicts none; set val_evaluator.metric='bbox'")
        records = [
            dict(image_id=prediction['img_id'], category_id=self.cat_ids[label])
            for label in prediction['labels'].tolist()
        ]
        scores = prediction.get('mask_scores', prediction['scores']) if kind == 'segm' else prediction['scores']
        if kind == 'segm':
            regions = prediction['masks']
        else:
            corners = prediction['bboxes'].astype(np.float64).reshape(-1, 4)
            regions = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1).tolist()
        name = 'segmentation' if kind == 'segm' else 'bbox'
        return [
            {**record, 'score': score, name: region}
            for record, score, region in zip(records, scores.tolist(), regions, strict=True)
        ]

    def _figures_of_classes(self, precision: np.ndarray, kind: str) -> dict[str, float]:
        """AP of each class (all sizes, most detections an image)."""
        figures, lines = {}, []
        for index, category in enumerate(self._coco_api.loadCats(self.cat_ids)):
            of_class = precision[:, :, index, 0, -1]
            known = of_class[of_class > -1]
            ap = round(np.mean(known) if known.size else float('nan'), 3)
            figures[f'{category["name"]}_precision'] = ap
            lines.append(f'{category["name"]} {ap:.3f}')
        MMLogger.get_current_instance().info(f'{kind} AP by class: ' + ', '.join(lines))
        return figures
