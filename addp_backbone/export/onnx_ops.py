"""The two steps of a detector whose results have no fixed number, as torch operators of fixed output shape.

Suppression keeps an unknown number of boxes, and each pyramid level pools an unknown number of RoIs; ``torch.export``
wants shapes that it knows. Here suppression returns a mask over all boxes and pooling returns all RoIs, so that what is
unknown stays inside the operator. In the ONNX file both are standard operators (NonMaxSuppression, RoiAlign).

Shapes: B images, N boxes an image, K RoIs of all images, C channels, s side of a pooled RoI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms, roi_align

ONNX_BOOL = 9  # onnx.TensorProto.BOOL


@torch.library.custom_op('addp_export::suppress', mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_kept: int) -> Tensor:
    """Greedy non-maximum suppression in every image.

    Args:
        boxes: (B, N, 4) float32, x1, y1, x2, y2.
        scores: (B, N) float32.
        iou_threshold: Boxes that overlap a better one by more than this IoU are left out.
        score_threshold: Boxes whose score does not exceed it are left out.
        max_kept: At most so many boxes, the best ones, are kept in an image.

    Returns:
        (B, N) bool, True for boxes that are kept.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for image, (image_boxes, image_scores) in enumerate(zip(boxes, scores, strict=True)):
        candidates = (image_scores > score_threshold).nonzero()[:, 0]
        best = nms(image_boxes[candidates], image_scores[candidates], iou_threshold)[:max_kept]
        kept[image, candidates[best]] = True
    return kept


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_kept: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@torch.library.custom_op('addp_export::pool_rois', mutates_args=())
def pool_rois(
    maps: Sequence[Tensor],
    rois: Tensor,
    images: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: int,
    sampling_ratio: int,
) -> Tensor:
    """Pools each RoI from its level of the pyramid (RoIAlign with average pooling and half-pixel centres).

    Args:
        maps: (B, C, H, W) float32, one for each level.
        rois: (K, 4) float32, x1, y1, x2, y2 in pixels of the input.
        images: (K,) int64, the image of each RoI.
        levels: (K,) int64, its level.
        scales: Of each level, in pixels of the map per pixel of the input.
        size: Side s of a pooled RoI.
        sampling_ratio: Samples along an axis of a bin; 0 = as many as the bin is wide.

    Returns:
        (K, C, s, s) float32.
    """
    pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], size, size)
    with_images = torch.cat((images[:, None].to(rois.dtype), rois), dim=1)
    for level, (feature, scale) in enumerate(zip(maps, scales, strict=True)):
        chosen = (levels == level).nonzero()[:, 0]
        if len(chosen):
            pooled[chosen] = roi_align(feature, with_images[chosen], size, scale, sampling_ratio, aligned=True)
    return pooled


@pool_rois.register_fake
def _(
    maps: Sequence[Tensor],
    rois: Tensor,
    images: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: int,
    sampling_ratio: int,
) -> Tensor:
    return maps[0].new_empty(rois.shape[0], maps[0].shape[1], size, size)


def translations() -> dict[Any, Callable[..., Any]]:
    """What the exporter writes for the two operators: torch operator -> function that builds ONNX nodes."""
    import onnx_ir
    import onnxscript

    op: Any = onnxscript.opset18  # takes onnx_ir's tensors too, which its annotations do not say

    def constant(values: Any, dtype: torch.dtype = torch.int64) -> Any:
        return op.Constant(value=onnx_ir.tensor(torch.tensor(values, dtype=dtype).numpy()))

    def suppress_nodes(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float, max_kept: int) -> Any:
        selected = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, constant([1])),
            constant([max_kept]),
            constant([iou_threshold], torch.float32),
            constant([score_threshold], torch.float32),
        )  # (kept, 3): image, class (always 0), box
        index = op.Gather(selected, constant([0, 2]), axis=1)
        ones = op.Expand(constant([1]), op.Shape(index, start=0, end=1))
        nothing = op.ConstantOfShape(op.Shape(scores), value=onnx_ir.tensor([0], dtype=onnx_ir.DataType.INT64))
        return op.Cast(op.ScatterND(nothing, index, ones), to=ONNX_BOOL)

    def pool_nodes(
        maps: Sequence[Any],
        rois: Any,
        images: Any,
        levels: Any,
        scales: Sequence[float],
        size: int,
        sampling_ratio: int,
    ) -> Any:
        shape = op.Concat(
            op.Shape(rois, start=0, end=1), op.Shape(maps[0], start=1, end=2), constant([size, size]), axis=0
        )
        pooled = op.ConstantOfShape(shape, value=onnx_ir.tensor([0.0], dtype=onnx_ir.DataType.FLOAT))
        for level, (feature, scale) in enumerate(zip(maps, scales, strict=True)):
            chosen = op.Transpose(op.NonZero(op.Equal(levels, constant(level))))  # (n, 1)
            flat = op.Squeeze(chosen, constant([1]))
            values = op.RoiAlign(
                feature,
                op.Gather(rois, flat),
                op.Gather(images, flat),
                coordinate_transformation_mode='half_pixel',
                output_height=size,
                output_width=size,
                sampling_ratio=sampling_ratio,
                spatial_scale=scale,
            )
            pooled = op.ScatterND(pooled, chosen, values)
        return pooled

    return {
        torch.ops.addp_export.suppress.default: suppress_nodes,
        torch.ops.addp_export.pool_rois.default: pool_nodes,
    }
