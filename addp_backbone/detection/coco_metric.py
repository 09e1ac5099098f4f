"""COCO's box and mask AP for mmdet, quicker than mmdet's metrics, with pycocotools' numbers.

Objects, images and classes are found by id and name, so that their order in the file, text ids and ids of 0 change
nothing. ``CocoEvaluation`` leaves matching and accumulation to faster-coco-eval (C++). What that spends around them is
left out: it unpacks every mask three times (area, box, run lengths), where a mask's area is needed always and its IoU
only if its class is in the image. ``QuickCocoMetric`` hands detections over as they are; mmdet's metrics write them to
JSON and read that again, once a kind of result.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCOeval_faster
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS
from numpy.typing import NDArray
from pycocotools import mask as mask_codec
from pycocotools.coco import COCO
from torch import Tensor

from addp_backbone.datasets.coco_file import CocoError, CocoFile, load_coco
from addp_backbone.detection.image_matches import matches_of
from addp_backbone.files.atomic import replace_file
from addp_backbone.files.image_results import write_image_results

STATS = {
    name: index
    for index, name in enumerate(
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
                'useCats is 0, wanted 1: classes are matched apart; faster_coco_eval.COCOeval_faster ignores them'
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
        for number, annotation in enumerate(annotations, start=1):  # an id of 0 would count as "not matched"
            crowd = int(annotation.get('iscrowd', 0))
            lean = dict(id=number, area=annotation['area'], iscrowd=crowd, ignore=crowd)
            self.gt_dataset.append_ref(annotation['image_id'], annotation['category_id'], lean)
            self._truth[annotation['image_id'], annotation['category_id']].append(annotation)
        for (number, detection), area in zip(chosen, self._areas([detection for _, detection in chosen]), strict=True):
            lean = dict(id=number, area=area, iscrowd=0, ignore=0, score=detection['score'])
            self.dt_dataset.append_ref(detection['image_id'], detection['category_id'], lean)
            self._found[detection['image_id'], detection['category_id']].append(detection)
        self._nonempty_iou_pairs = self._truth.keys() & self._found.keys()

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray:  # noqa: N802  (the base class' names)
        """IoU of an image's detections of a class, best score first, with its objects; (detections, objects)."""
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

    def objects(self, image: int, label: int) -> list[dict[str, Any]]:
        """Annotations of an image and class, in the order of the columns of :attr:`ious`."""
        return self._truth[image, label]

    def detected_scores(self, image: int, label: int) -> NDArray[np.float64]:
        """Scores of an image's detections of a class, in the order in which they were given."""
        return np.array([detection['score'] for detection in self._found[image, label]], np.float64)

    def _areas(self, detections: list[dict[str, Any]]) -> list[float]:
        if self.params.iouType == 'bbox':
            return [detection['bbox'][2] * detection['bbox'][3] for detection in detections]
        parts = [
            mask_codec.area([detection['segmentation'] for detection in detections[start : start + MASKS_AT_ONCE]])
            for start in range(0, len(detections), MASKS_AT_ONCE)
        ]
        return np.concatenate(parts).tolist() if parts else []


@METRICS.register_module()
class QuickCocoMetric(BaseMetric):
    """Box and mask AP with the figures of mmdet's ``CocoMetric``, matched by ids and names.

    The AP of every class is logged by name.

    Args:
        ann_file: COCO JSON with the ground truth.
        metric: 'bbox', 'segm' or both.
        classwise: Whether the figures hold each class's AP, as ``{kind}_{class}_precision`` (and, if only one kind is
            evaluated, as ``{class}_precision``, mmdet's name).
        proposal_nums: Largest numbers of detections an image; the last is that of AP.
        iou_thrs: IoU thresholds; None: 0.5, 0.55, ..., 0.95.
        metric_items: Names of :data:`STATS` to report; None: the six APs.
        format_only: Only write the detections, for data without ground truth.
        outfile_prefix: Where to write detections, as ``{outfile_prefix}.bbox.json`` and ``.segm.json`` with the data
            set's image and category ids; None does not write.
        matches_file: Where to write which detections of each image hit an object (``.npz``), which intervals of AP
            follow from (:mod:`addp_backbone.detection.image_matches`); None does not write.
        collect_device: 'cpu' or 'gpu', through which processes exchange results.
        prefix: What figures' names begin with.

    Raises:
        ValueError: If a metric or item is unknown, or nothing would be written by ``format_only``.
        CocoError: If the file has errors.
    """

    default_prefix = 'coco'

    def __init__(
        self,
        ann_file: str,
        metric: str | Sequence[str] = 'bbox',
        classwise: bool = False,
        proposal_nums: Sequence[int] = (100, 300, 1000),
        iou_thrs: Sequence[float] | None = None,
        metric_items: Sequence[str] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        matches_file: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.metrics = [metric] if isinstance(metric, str) else list(metric)
        unknown = [*({*self.metrics} - {'bbox', 'segm'}), *({*(metric_items or ())} - {*STATS})]
        if unknown:
            raise ValueError(f"unknown: {unknown}; metric is 'bbox' and/or 'segm', metric_items are {list(STATS)}")
        if format_only and outfile_prefix is None:
            raise ValueError('format_only writes detections: give outfile_prefix, a path and the beginning of a name')
        self.classwise = classwise
        self.proposal_nums = list(proposal_nums)
        self.iou_thrs = np.linspace(0.5, 0.95, 10) if iou_thrs is None else np.asarray(iou_thrs, np.float64)
        self.metric_items = list(STATS)[:6] if metric_items is None else list(metric_items)
        self.format_only = format_only
        self.outfile_prefix = outfile_prefix
        self.matches_file = matches_file
        self.coco: CocoFile = load_coco(ann_file, with_annotations=not format_only)
        self.cat_ids: list[Any] | None = None

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        """Keeps the detections of a batch, masks as run-length codes."""
        for sample in data_samples:
            found = sample['pred_instances']
            kept: dict[str, Any] = {key: _array(found[key]) for key in ('bboxes', 'scores', 'labels')}
            if 'masks' in found:
                masks = found['masks']
                kept['masks'] = [_encoded(mask) for mask in masks]
            if 'mask_scores' in found:
                kept['mask_scores'] = _array(found['mask_scores'])
            self.results.append((sample['img_id'], {**kept, 'img_id': sample['img_id']}))

    def compute_metrics(self, results: list[tuple[Any, dict[str, Any]]]) -> dict[str, float]:
        """The figures of all images' results, which ``process`` made."""
        classes = self.dataset_meta['classes']
        self.cat_ids = self.coco.class_ids(classes)
        logger = MMLogger.get_current_instance()
        figures: dict[str, float] = {}
        matches: dict[str, dict[str, NDArray[Any]]] = {}
        for kind in self.metrics:
            detections = [detection for _, prediction in results for detection in self._detections(prediction, kind)]
            if self.outfile_prefix is not None:
                replace_file(f'{self.outfile_prefix}.{kind}.json', json.dumps(detections))
                logger.info(f'{len(detections)} detections written: {self.outfile_prefix}.{kind}.json')
            if self.format_only:
                continue
            if not detections:
                logger.error('The testing results of the whole dataset are empty.')
                if self.matches_file is None:
                    break
            evaluation = self._evaluate(detections, kind)
            if self.matches_file is not None:
                matches[kind] = matches_of(evaluation, [str(key) for key in self._image_ids()]).arrays()
                if not detections:
                    continue
            figures.update(self._figures_of_classes(evaluation.eval['precision'], kind, classes))
            for name in self.metric_items:
                figures[f'{kind}_{name}'] = float(f'{round(evaluation.stats[STATS[name]], 3)}')
            logger.info(f'{kind}_mAP_copypaste: ' + ' '.join(f'{value:.3f}' for value in evaluation.stats[:6]))
        if matches and self.matches_file is not None:
            write_image_results(self.matches_file, matches)
        return figures

    def _detections(self, prediction: dict[str, Any], kind: str) -> list[dict[str, Any]]:
        """One image's detections as COCO has them, with the data set's ids."""
        if kind == 'segm' and 'masks' not in prediction:
            raise KeyError("metric 'segm' wants masks, but the model predicts none; set val_evaluator.metric='bbox'")
        assert self.cat_ids is not None
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

    def _evaluate(self, detections: list[dict[str, Any]], kind: str) -> CocoEvaluation:
        """Numbers images and classes by their order, as the evaluation wants integers in ascending order."""
        assert self.cat_ids is not None
        images = {key: number for number, key in enumerate(self._image_ids(), start=1)}
        categories = {key: number for number, key in enumerate(self.cat_ids, start=1)}
        unknown = sorted({str(d['image_id']) for d in detections if d['image_id'] not in images})
        if unknown:
            raise CocoError(f'detections are of images that {self.coco.path} does not have, such as {unknown[:3]}')
        truth = _ground_truth(self.coco, images, categories, kind)
        numbered = [
            {**d, 'image_id': images[d['image_id']], 'category_id': categories[d['category_id']]} for d in detections
        ]
        evaluation = CocoEvaluation(truth, numbered, kind)
        evaluation.params.catIds, evaluation.params.imgIds = list(categories.values()), list(images.values())
        evaluation.params.maxDets, evaluation.params.iouThrs = self.proposal_nums, self.iou_thrs
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.run()
        return evaluation

    def _image_ids(self) -> list[Any]:
        """Ids of all images, ascending."""
        return sorted((record['id'] for record in self.coco.images), key=lambda key: (isinstance(key, str), key))

    def _figures_of_classes(self, precision: np.ndarray, kind: str, classes: Sequence[str]) -> dict[str, float]:
        """AP of each class (all sizes, most detections an image), logged; returned if they are wanted."""
        figures, lines = {}, []
        for index, name in enumerate(classes):
            of_class = precision[:, :, index, 0, -1]
            known = of_class[of_class > -1]
            ap = round(np.mean(known) if known.size else float('nan'), 3)
            lines.append(f'  {name}: ' + (f'{ap:.3f}' if known.size else 'no object'))
            figures[f'{kind}_{name}_precision'] = ap
            if len(self.metrics) == 1:
                figures[f'{name}_precision'] = ap
        MMLogger.get_current_instance().info('\n'.join([f'{kind} AP by class', *lines]))
        return figures if self.classwise else {}


def _array(tensor: Tensor) -> NDArray[Any]:
    """The values for NumPy, which has no bfloat16: what evaluation under autocast leaves on a CPU."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def _encoded(mask: Any) -> dict[str, Any]:
    """A mask as run-length code; codes stay."""
    code = mask
    if not isinstance(mask, dict):
        code = mask_codec.encode(np.asfortranarray(mask.detach().cpu().numpy(), dtype=np.uint8))
    counts = code['counts']
    return {'size': list(code['size']), 'counts': counts.decode('ascii') if isinstance(counts, bytes) else counts}


def _ground_truth(coco: CocoFile, images: dict[Any, int], categories: dict[Any, int], kind: str) -> COCO:
    """The index of pycocotools over renumbered records.

    Raises:
        CocoError: If masks are to be evaluated and objects have none.
    """
    records = [record for record in coco.annotations if record['category_id'] in categories]
    without = sum('segmentation' not in record for record in records)
    if kind == 'segm' and without:
        raise CocoError(
            f"{without} of {len(records)} objects of {coco.path} have no mask, but metric 'segm' compares masks: "
            "complete them, or evaluate boxes alone (val_evaluator.metric='bbox')"
        )
    truth = COCO()
    truth.dataset = dict(
        images=[{**record, 'id': images[record['id']]} for record in coco.images],
        categories=[dict(id=number, name=coco.categories[key]) for key, number in categories.items()],
        annotations=[
            {**r, 'id': number, 'image_id': images[r['image_id']], 'category_id': categories[r['category_id']]}
            for number, r in enumerate(records, start=1)
        ],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth
