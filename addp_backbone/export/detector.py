"""A two-stage detector as one graph: images in, a fixed number of boxes, scores, labels and masks out.

Every step has the shapes that ``torch.export`` wants: proposals and detections are filled up to a fixed number, and
what fills them up has a score that no threshold lets pass.

Shapes: B images, P proposals an image, D detections an image, C classes, L levels of the pyramid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from addp_backbone.export.boxes import NOT_A_BOX, BoxCoder, best, grid_anchors, take
from addp_backbone.export.features import FeatureGraph, neck_of
from addp_backbone.export.onnx_ops import pool_rois

NO_LABEL = -1
Maps = tuple[Tensor, ...]


class DetectorGraph(FeatureGraph):
    """An mmdet Faster, Mask or Cascade R-CNN for ``torch.export``: equal detections.

    Args:
        backbone: Its backbone in a form that traces.
        model: The detector; neck and heads are shared.

    Raises:
        ValueError: If the model does something that the graph lacks.
    """

    def __init__(self, backbone: nn.Module, model: Any) -> None:
        super().__init__(backbone, neck_of(model))
        self.proposals = ProposalStage(model.rpn_head)
        roi_head = model.roi_head
        self.boxes = BoxStage(roi_head)
        self.masks = MaskStage(roi_head) if roi_head.with_mask else None

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detects.

        Args:
            images: (B, 3, H, W) float32, normalised and padded.
            sizes: (B, 2) int64, height and width of each image without its padding.

        Returns:
            Boxes (B, D, 4) float32, x1, y1, x2, y2 in pixels of the input, scores (B, D) float32, best first, labels
            (B, D) int64, counts (B,) int64, and with a mask head mask probabilities (B, D, 28, 28) float32 within the
            boxes. Of an image's D rows only the first ``counts`` are detections; the others have boxes of 0, score 0
            and label -1.
        """
        maps = self.features(images)
        limits = sizes.flip(1).repeat(1, 2).to(torch.float32)  # (B, 4): width, height, width, height
        proposals, exist = self.proposals(maps, limits)
        boxes, scores, labels = self.boxes(maps, proposals, exist, limits)
        found = scores > NOT_A_BOX
        outputs = (
            boxes * found[..., None],
            scores * found,
            torch.where(found, labels, torch.full_like(labels, NO_LABEL)),
            found.sum(dim=1),
        )
        return outputs if self.masks is None else (*outputs, self.masks(maps, boxes, labels))


class ProposalStage(nn.Module):
    """The RPN and the choice of its proposals.

    Args:
        head: mmdet's RPN head, with its ``test_cfg``.

    Raises:
        ValueError: If its scores are no sigmoids or its test settings are unknown.
    """

    def __init__(self, head: Any) -> None:
        super().__init__()
        if not head.use_sigmoid_cls:
            raise ValueError('cannot export an RPN with softmax scores, only with sigmoid scores')
        cfg = head.test_cfg
        self.iou_threshold = nms_threshold(cfg.nms, 'rpn')
        self.head, self.coder = head, BoxCoder(head.bbox_coder)
        self.nms_pre, self.number = int(cfg.nms_pre), int(cfg.max_per_img)
        self.min_size = float(cfg.get('min_bbox_size', -1))
        generator = head.prior_generator
        self.strides = [tuple(stride) for stride in generator.strides]
        for level, anchors in enumerate(generator.base_anchors):
            self.register_buffer(f'anchors_{level}', anchors.clone(), persistent=False)
        if self.number > self.nms_pre * len(self.strides):
            raise ValueError(
                f'test_cfg.rpn.max_per_img={self.number} exceeds nms_pre={self.nms_pre} for each of '
                f'{len(self.strides)} levels'
            )

    def forward(self, maps: Maps, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Proposals (B, P, 4) and whether they are any (B, P) bool."""
        boxes, scores, groups = [], [], []
        for level, (logits, deltas) in enumerate(zip(*self.head(maps), strict=True)):
            level_boxes, level_scores = self.of_level(level, logits, deltas, limits)
            boxes.append(level_boxes)
            scores.append(level_scores)
            groups.append(torch.full((self.nms_pre,), level, dtype=torch.int64))
        all_boxes = torch.cat(boxes, dim=1)
        all_scores = torch.cat(scores, dim=1)
        if self.min_size >= 0:
            sides = all_boxes[..., 2:] - all_boxes[..., :2]
            large = (sides > self.min_size).all(dim=-1)
            all_scores = torch.where(large, all_scores, torch.full_like(all_scores, NOT_A_BOX))
        values, index = best(all_boxes, all_scores, torch.cat(groups), self.iou_threshold, NOT_A_BOX / 2, self.number)
        return take(all_boxes, index), values > NOT_A_BOX

    def of_level(self, level: int, logits: Tensor, deltas: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """The best ``nms_pre`` boxes of a level and their scores; a smaller level is filled up."""
        B, _, H, W = logits.shape
        scores = logits.permute(0, 2, 3, 1).reshape(B, -1).sigmoid()
        deltas = deltas.permute(0, 2, 3, 1).reshape(B, -1, 4)
        anchors = grid_anchors(getattr(self, f'anchors_{level}'), self.strides[level], H, W)
        fill = scores.new_full((B, self.nms_pre), NOT_A_BOX)
        scores, index = torch.cat((scores, fill), dim=1).topk(self.nms_pre, dim=1)
        index = index.clamp(max=anchors.shape[0] - 1)
        return self.coder.decode(anchors[index], take(deltas, index), limits[:, None]), scores


class BoxStage(nn.Module):
    """The box heads, one or in a row (cascade), and the choice of the detections.

    Args:
        roi_head: mmdet's ``StandardRoIHead`` or ``Detectron2CascadeRoIHead``, with its ``test_cfg``.

    Raises:
        ValueError: If it is another head or has options that the graph lacks.
    """

    heads: Any  # their attributes are names that nn.Module does not know

    def __init__(self, roi_head: Any) -> None:
        super().__init__()
        kind = type(roi_head).__name__
        if kind not in ('StandardRoIHead', 'Detectron2CascadeRoIHead'):
            raise ValueError(f'cannot export {kind}, only StandardRoIHead and Detectron2CascadeRoIHead')
        heads = roi_head.bbox_head
        self.heads = nn.ModuleList(heads if isinstance(heads, nn.ModuleList) else [heads])
        for head in self.heads:
            if head.custom_cls_channels or not head.with_reg or not head.with_cls:
                raise ValueError(f'cannot export a {type(head).__name__} without boxes or with its own activation')
        self.coders = [BoxCoder(head.bbox_coder) for head in self.heads]
        self.pool = RoIPool(roi_head.bbox_roi_extractor)
        cfg = roi_head.test_cfg
        self.iou_threshold = nms_threshold(cfg.nms, 'rcnn')
        self.score_threshold, self.number = float(cfg.score_thr), int(cfg.max_per_img)

    def forward(self, maps: Maps, proposals: Tensor, exist: Tensor, limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, D, 4), scores (B, D), :data:`NOT_A_BOX` where an image has fewer, and labels (B, D)."""
        B, P, _ = proposals.shape
        num_classes = self.heads[-1].num_classes
        boxes, total = proposals, proposals.new_zeros(())
        for stage, (head, coder) in enumerate(zip(self.heads, self.coders, strict=True)):
            logits, deltas = head(self.pool(maps, boxes))
            total = total + logits.softmax(dim=1)
            deltas = deltas.reshape(B, P, -1, 4)  # one box for each class, or one for all
            if stage < len(self.heads) - 1:
                boxes = coder.decode(boxes, deltas[:, :, 0], limits[:, None])
        scores = (total / len(self.heads)).reshape(B, P, num_classes + 1)[..., :-1]
        scores = torch.where(exist[..., None], scores, torch.full_like(scores, NOT_A_BOX))
        decoded = self.coders[-1].decode(boxes[:, :, None], deltas, limits[:, None, None])
        decoded = decoded.expand(B, P, num_classes, 4).reshape(B, P * num_classes, 4)
        labels = torch.arange(num_classes).repeat(P)
        values, index = best(decoded, scores.flatten(1), labels, self.iou_threshold, self.score_threshold, self.number)
        return take(decoded, index), values, index % num_classes


class MaskStage(nn.Module):
    """The mask head on the detections.

    Args:
        roi_head: With ``mask_head`` and its extractor.
    """

    def __init__(self, roi_head: Any) -> None:
        super().__init__()
        self.head: Any = roi_head.mask_head
        shared = roi_head.share_roi_extractor
        self.pool = RoIPool(roi_head.bbox_roi_extractor if shared else roi_head.mask_roi_extractor)

    def forward(self, maps: Maps, boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (B, D, 28, 28) of each detection's own class."""
        B, D, _ = boxes.shape
        logits = self.head(self.pool(maps, boxes))  # (B * D, C or 1, 28, 28)
        if not self.head.class_agnostic:
            index = labels.reshape(-1, 1, 1, 1).expand(-1, 1, *logits.shape[-2:])
            logits = logits.gather(1, index)
        return logits[:, 0].sigmoid().unflatten(0, (B, D))


class RoIPool(nn.Module):
    """mmdet's ``SingleRoIExtractor``: each RoI from the level of its size.

    Args:
        extractor: mmdet's, with RoIAlign layers.

    Raises:
        ValueError: If it is another extractor.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        layers = extractor.roi_layers
        first = layers[0]
        if type(first).__name__ != 'RoIAlign' or first.pool_mode != 'avg' or not first.aligned:
            raise ValueError(f'cannot export {first}, only RoIAlign with average pooling and aligned=True')
        if not hasattr(extractor, 'finest_scale') or first.output_size[0] != first.output_size[1]:
            raise ValueError(f'cannot export {type(extractor).__name__}, only SingleRoIExtractor with square outputs')
        self.scales = [float(layer.spatial_scale) for layer in layers]
        self.size, self.sampling_ratio = int(first.output_size[0]), int(first.sampling_ratio)
        self.finest_scale = float(extractor.finest_scale)

    def forward(self, maps: Maps, boxes: Tensor) -> Tensor:
        """Boxes (B, N, 4) -> (B * N, channels, size, size)."""
        B, N, _ = boxes.shape
        rois = boxes.reshape(-1, 4)
        images = torch.arange(B)[:, None].expand(B, N).reshape(-1)
        area = (rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])
        levels = torch.floor(torch.log2(area.sqrt() / self.finest_scale + 1e-6))
        levels = levels.clamp(0, len(self.scales) - 1).to(torch.int64)
        used = list(maps[: len(self.scales)])
        return pool_rois(used, rois, images, levels, self.scales, self.size, self.sampling_ratio)


def nms_threshold(nms: Any, stage: str) -> float:
    """The IoU threshold of ``test_cfg``'s suppression.

    Raises:
        ValueError: If it is no plain suppression by class.
    """
    options = dict(nms)
    kind, threshold = options.pop('type', 'nms'), options.pop('iou_threshold', None)
    options.pop('split_thr', None)  # only how mmcv computes it
    if kind != 'nms' or threshold is None or options:
        raise ValueError(
            f"test_cfg.{stage}.nms is {dict(nms)}, but only dict(type='nms', iou_threshold=...) can be exported"
        )
    return float(threshold)
