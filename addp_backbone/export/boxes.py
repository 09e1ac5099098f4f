"""Boxes of a batch in a fixed number an image: anchors, decoding, the best of each image.

Shapes: B images, N boxes an image, A anchors at a point of a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from addp_backbone.export.onnx_ops import suppress

NOT_A_BOX = -1.0  # score of what fills up a fixed number


class BoxCoder:
    """Turns deltas into boxes as mmdet's ``DeltaXYWHBBoxCoder`` does, for batches of boxes.

    Args:
        coder: mmdet's.

    Raises:
        ValueError: If it is another coder, or has options that this one lacks.
    """

    def __init__(self, coder: Any) -> None:
        if type(coder).__name__ != 'DeltaXYWHBBoxCoder' or coder.add_ctr_clamp or not coder.clip_border:
            raise ValueError(
                f'cannot export boxes of {type(coder).__name__}, only of DeltaXYWHBBoxCoder with clip_border=True and '
                'add_ctr_clamp=False'
            )
        self.means, self.stds = tuple(coder.means), tuple(coder.stds)

    def decode(self, boxes: Tensor, deltas: Tensor, limits: Tensor) -> Tensor:
        """Decodes and clips.

        Args:
            boxes: (..., 4) float32, x1, y1, x2, y2: what the deltas refer to.
            deltas: (..., 4) float32.
            limits: (..., 4) float32, width, height, width, height of the box's image in pixels.

        Returns:
            (..., 4), inside the image.
        """
        deltas = deltas * deltas.new_tensor(self.stds) + deltas.new_tensor(self.means)
        limit = abs(math.log(16 / 1000))  # mmdet's wh_ratio_clip
        size = boxes[..., 2:] - boxes[..., :2]
        centre = (boxes[..., :2] + boxes[..., 2:]) * 0.5 + size * deltas[..., :2]
        half = size * deltas[..., 2:].clamp(-limit, limit).exp() * 0.5
        decoded = torch.cat((centre - half, centre + half), dim=-1)
        return torch.minimum(decoded.clamp(min=0), limits)


def grid_anchors(base_anchors: Tensor, stride: Sequence[int], height: int, width: int) -> Tensor:
    """The anchors of a map.

    Args:
        base_anchors: (A, 4) float32 about the origin.
        stride: Along x and y, in pixels.
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        (height * width * A, 4) float32, point after point in raster order.
    """
    x = (torch.arange(width) * stride[0]).float()[None].expand(height, width)
    y = (torch.arange(height) * stride[1]).float()[:, None].expand(height, width)
    shifts = torch.stack((x, y, x, y), dim=-1)
    return (shifts[:, :, None] + base_anchors).reshape(-1, 4)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Picks (B, k, 4) of the boxes (B, N, 4) by index (B, k)."""
    return values.gather(1, index[..., None].expand(-1, -1, 4))


def best(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, score_threshold: float, number: int
) -> tuple[Tensor, Tensor]:
    """The best boxes of each image after suppression within groups.

    Args:
        boxes: (B, N, 4) float32.
        scores: (B, N) float32; :data:`NOT_A_BOX` for what is none.
        groups: (N,) int64; boxes of different groups do not suppress each other.
        iou_threshold: See :func:`suppress`.
        score_threshold: See :func:`suppress`.
        number: k.

    Returns:
        Scores (B, k), best first and :data:`NOT_A_BOX` where an image has fewer, and indices (B, k) into N.
    """
    offset = groups.to(boxes.dtype)[:, None] * (boxes.amax(dim=(1, 2), keepdim=True) + 1)  # groups lie far apart
    kept = suppress(boxes + offset, scores, iou_threshold, score_threshold, number)
    values = torch.where(kept, scores, torch.full_like(scores, NOT_A_BOX))
    if number > values.shape[1]:
        values = F.pad(values, (0, number - values.shape[1]), value=NOT_A_BOX)
    values, index = values.topk(number, dim=1)
    return values, index.clamp(max=scores.shape[1] - 1)
