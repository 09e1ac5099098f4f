"""The box and mask heads of Cascade Mask R-CNN as ViTDet has them; mmdet's differ in training and in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.models.utils import empty_instances, unpack_gt_instances
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.registry import TASK_UTILS as MMDET_TASK_UTILS
from mmdet.structures.bbox import bbox2roi
from mmengine.model import ModuleList
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

Maps = tuple[Tensor, ...]


@MODELS.register_module()
class Detectron2CascadeRoIHead(StandardRoIHead):
    """Box heads in a row, each on the boxes of the one before, and one mask head (detectron2's ``CascadeROIHeads``).

    mmdet's ``CascadeRoIHead`` differs: it has a mask head a stage, draws a new sample of boxes for every stage, weighs
    the stages 1, 0.5 and 0.25, and averages the stages' class logits. Here:

    - Proposals are sampled once, for the first stage. The others take all boxes that the stage before them predicted,
      without gradient, clipped to the image, those that became empty left out.
    - The stages' losses are added, and each stage sends 1 / number of stages of its gradient into the pyramid.
    - The mask head trains on the first stage's positive samples.
    - In tests, class probabilities are averaged over the stages; the boxes are the last stage's.

    Source: detectron2, ``modeling/roi_heads/cascade_rcnn.py``.

    Args:
        bbox_roi_extractor: Config of the extractor that all box heads share.
        bbox_head: A config for each stage, all with ``reg_class_agnostic=True``.
        mask_roi_extractor: Config of the mask head's extractor; None without masks.
        mask_head: Config of the mask head; None without masks.
        train_cfg: A config for each stage with an ``assigner``; the first one has the ``sampler`` and ``mask_size``.
        test_cfg: ``score_thr``, ``nms``, ``max_per_img`` and ``mask_thr_binary``.
        init_cfg: None: the heads have their own.

    Raises:
        ValueError: If box heads are not class-agnostic, or there are not as many training configs.
    """

    def __init__(
        self,
        bbox_roi_extractor: dict[str, Any],
        bbox_head: Sequence[dict[str, Any]],
        mask_roi_extractor: dict[str, Any] | None = None,
        mask_head: dict[str, Any] | None = None,
        train_cfg: Sequence[Any] | None = None,
        test_cfg: Any | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        if train_cfg is not None and len(train_cfg) != len(bbox_head):
            raise ValueError(
                f'train_cfg.rcnn needs one entry for each of the {len(bbox_head)} box heads, got {len(train_cfg)}'
            )
        super().__init__(
            bbox_roi_extractor=bbox_roi_extractor,
            bbox_head=bbox_head,
            mask_roi_extractor=mask_roi_extractor,
            mask_head=mask_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )

    def init_bbox_head(self, bbox_roi_extractor: dict[str, Any], bbox_head: Sequence[dict[str, Any]]) -> None:
        """Builds the shared extractor and a box head for each stage."""
        if not all(head.get('reg_class_agnostic') for head in bbox_head):
            raise ValueError('the box heads of a cascade need reg_class_agnostic=True: the next stage has one box each')
        self.bbox_roi_extractor = MMDET_MODELS.build(bbox_roi_extractor)
        self.bbox_head = ModuleList(MMDET_MODELS.build(head) for head in bbox_head)

    def init_assigner_sampler(self) -> None:
        """Builds an assigner for each stage and the first stage's sampler."""
        self.bbox_assigners: list[Any] = []
        self.bbox_sampler: Any = None
        self.take_all = MMDET_TASK_UTILS.build(dict(type='PseudoSampler'))
        if self.train_cfg:
            self.bbox_assigners = [MMDET_TASK_UTILS.build(stage.assigner) for stage in self.train_cfg]
            self.bbox_sampler = MMDET_TASK_UTILS.build(self.train_cfg[0].sampler, default_args=dict(context=self))

    def forward(self, x: Maps, rpn_results_list: list[InstanceData], batch_data_samples: list) -> tuple:
        """The heads without any post-processing.

        Args:
            x: Maps (B, C, H, W) of the pyramid, finest first.
            rpn_results_list: Proposals of each image, ``bboxes`` (N, 4) in pixels.
            batch_data_samples: Samples of the images.

        Returns:
            Average class probabilities (all N, classes + 1), the last stage's box deltas (all N, 4), and with a mask
            head mask logits (all N, classes, 28, 28) of the boxes that the last stage starts from.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        probs, deltas, boxes = self._run_stages(x, [result.bboxes for result in rpn_results_list], metas)
        masks = (self._mask_forward(x, bbox2roi(boxes))['mask_preds'],) if self.with_mask else ()
        return torch.cat(probs), torch.cat(deltas), *masks

    def loss(self, x: Maps, rpn_results_list: list[InstanceData], batch_data_samples: list) -> dict[str, Tensor]:
        """Losses of all stages and of the mask head.

        Args:
            x: Maps (B, C, H, W) of the pyramid, finest first.
            rpn_results_list: Proposals of each image, ``bboxes`` (N, 4) in pixels; changed.
            batch_data_samples: Samples with ``gt_instances``.

        Returns:
            ``s0.loss_cls``, ``s0.loss_bbox``, ``s0.acc``, the same of the other stages, and ``loss_mask``.
        """
        targets, ignored, metas = unpack_gt_instances(batch_data_samples)
        proposals = [results.pop('bboxes') for results in rpn_results_list]
        losses: dict[str, Tensor] = {}
        first_samples: list[SamplingResult] = []
        for stage, head in enumerate(self.bbox_head):
            samples = [
                self._sample(stage, boxes, truth, skipped)
                for boxes, truth, skipped in zip(proposals, targets, ignored, strict=True)
            ]
            first_samples = first_samples or samples
            boxes = [sample.priors for sample in samples]
            scores, deltas = self._run_stage(stage, x, boxes)
            stage_losses = head.loss_and_target(scores, deltas, bbox2roi(boxes), samples, self.train_cfg[stage])
            stage_losses = stage_losses['loss_bbox']
            stage_losses.setdefault('loss_cls', scores.sum())  # 0 with a gradient: every box became empty
            losses |= {f's{stage}.{name}': value for name, value in stage_losses.items()}
            proposals = self._refine(stage, boxes, deltas, metas)
            proposals = [boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)] for boxes in proposals]
        if self.with_mask:
            rois = bbox2roi([sample.pos_priors for sample in first_samples])
            logits = self._mask_forward(x, rois)['mask_preds']
            results = self.mask_head.loss_and_target(logits, first_samples, targets, self.train_cfg[0])
            losses |= results['loss_mask']
        return losses

    def predict_bbox(
        self,
        x: Maps,
        batch_img_metas: list[dict],
        rpn_results_list: list[InstanceData],
        rcnn_test_cfg: Any,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Detections of each image.

        Args:
            x: Maps (B, C, H, W) of the pyramid, finest first.
            batch_img_metas: ``img_shape``, and ``scale_factor`` to rescale, of each image.
            rpn_results_list: Proposals of each image, ``bboxes`` (N, 4) in pixels.
            rcnn_test_cfg: ``score_thr``, ``nms`` and ``max_per_img``.
            rescale: Whether boxes are in the original image's pixels.

        Returns:
            ``bboxes`` (K, 4), ``scores`` (K,), ``labels`` (K,) of each image, best score first.
        """
        proposals = [results.bboxes for results in rpn_results_list]
        last = self.bbox_head[-1]
        if not sum(len(boxes) for boxes in proposals):
            return empty_instances(
                batch_img_metas, x[0].device, 'bbox', num_classes=last.num_classes, score_per_cls=rcnn_test_cfg is None
            )
        probs, deltas, boxes = self._run_stages(x, proposals, batch_img_metas)
        rois = bbox2roi(boxes).split([len(boxes_) for boxes_ in boxes])
        # The head takes logits and makes them probabilities by softmax, of which log is the inverse
        logits = [scores.clamp_min(torch.finfo(scores.dtype).tiny).log() for scores in probs]
        return last.predict_by_feat(rois, logits, deltas, batch_img_metas, rcnn_test_cfg=rcnn_test_cfg, rescale=rescale)

    def _run_stages(
        self, x: Maps, proposals: list[Tensor], metas: list[dict]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """All stages of a test: average class probabilities, the last box deltas, and the boxes these start from."""
        sizes, boxes = [len(boxes) for boxes in proposals], proposals
        total, deltas = torch.zeros(()), torch.zeros(())
        for stage in range(len(self.bbox_head)):
            if stage:
                boxes = self._refine(stage - 1, boxes, deltas, metas)
            scores, deltas = self._run_stage(stage, x, boxes)
            total = total.to(scores.device) + scores.float().softmax(dim=1)
        return list((total / len(self.bbox_head)).split(sizes)), list(deltas.split(sizes)), boxes

    def _run_stage(self, stage: int, x: Maps, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (all N, classes + 1) and box deltas (all N, 4); the maps get a stage's share of the gradient."""
        features = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], bbox2roi(boxes))
        if features.requires_grad:
            features.register_hook(lambda grad: grad / len(self.bbox_head))
        return self.bbox_head[stage](features)

    def _refine(self, stage: int, boxes: list[Tensor], deltas: Tensor, metas: list[dict]) -> list[Tensor]:
        """The boxes that a stage predicts, clipped to each image, without gradient."""
        coder = self.bbox_head[stage].bbox_coder
        parts = deltas.detach().split([len(boxes_) for boxes_ in boxes])
        return [
            coder.decode(boxes_, part.to(boxes_.dtype), max_shape=meta['img_shape'])
            for boxes_, part, meta in zip(boxes, parts, metas, strict=True)
        ]

    def _sample(self, stage: int, boxes: Tensor, truth: InstanceData, ignored: InstanceData | None) -> SamplingResult:
        """Labels an image's boxes; only the first stage draws from them and adds the objects' own boxes."""
        proposals = InstanceData(priors=boxes)
        assigned = self.bbox_assigners[stage].assign(proposals, truth, ignored)
        sampler = self.take_all if stage else self.bbox_sampler
        return sampler.sample(assigned, proposals, truth)
