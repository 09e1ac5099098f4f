"""A segmentor with its sliding windows as one graph: images in, logits and a class map of the same size out.

All windows are cut by one lookup and computed as one batch, so that the network sees crops of a fixed size whatever the
size of the image. Logits are put together by looking up, for each row and each column of the image, the few windows
that cover it, in a fixed order.

Shapes: B images (H, W) in pixels, n windows along an axis, K classes, (h, w) size of a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone.export.features import FeatureGraph, neck_of


class SegmentorGraph(FeatureGraph):
    """An mmseg ``EncoderDecoder`` for ``torch.export``: equal to its ``slide`` or ``whole`` inference.

    Args:
        backbone: Its backbone in a form that traces.
        model: The segmentor; neck and decode head are shared.

    Raises:
        ValueError: If the model does something that the graph lacks.
    """

    def __init__(self, backbone: nn.Module, model: Any) -> None:
        super().__init__(backbone, neck_of(model))
        self.head = model.decode_head
        if isinstance(self.head, nn.ModuleList):
            raise ValueError('cannot export cascaded decode heads, only one')
        if model.out_channels == 1:
            raise ValueError('cannot export a decode head with one output channel, only one channel for each class')
        self.crop, self.stride = window_geometry(model.test_cfg)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Segments.

        Args:
            images: (B, 3, H, W) float32, normalised, no smaller than a window.

        Returns:
            Logits (B, K, H, W) float32 and their argmax (B, H, W) int64.
        """
        if self.crop is None:
            logits = self.compute(images)
            return logits, logits.argmax(dim=1)
        B, _, H, W = images.shape
        rows, cols = (
            window_pixels(length, crop, stride)
            for length, crop, stride in zip((H, W), self.crop, self.stride, strict=True)
        )  # (n, h) and (m, w)
        windows = images[:, :, rows][..., cols].permute(0, 2, 4, 1, 3, 5)  # (B, n, m, 3, h, w)
        n, m = rows.shape[0], cols.shape[0]
        logits = self.compute(windows.reshape(-1, 3, *self.crop)).unflatten(0, (B, n, m))  # (B, n, m, K, h, w)
        logits = logits.permute(0, 3, 2, 5, 1, 4).flatten(4)  # (B, K, m, w, n * h)
        logits = merge(logits, H, self.crop[0], self.stride[0], n)  # (B, K, m, w, H)
        logits = merge(logits.permute(0, 1, 4, 2, 3).flatten(3), W, self.crop[1], self.stride[1], m)  # (B, K, H, W)
        return logits, logits.argmax(dim=1)

    def compute(self, images: Tensor) -> Tensor:
        """Logits of images or windows, at their size."""
        logits = self.head(self.features(images))
        return F.interpolate(logits, images.shape[-2:], mode='bilinear', align_corners=self.head.align_corners)


def window_geometry(test_cfg: Any) -> tuple[tuple[int, int] | None, tuple[int, int]]:
    """Size and stride of the sliding windows; size None for inference on the whole image.

    Raises:
        ValueError: If the mode is neither ``slide`` nor ``whole``.
    """
    mode = test_cfg.get('mode', 'whole')
    if mode == 'whole':
        return None, (0, 0)
    if mode != 'slide':
        raise ValueError(f"test_cfg.mode is {mode!r}, wanted 'slide' or 'whole'")
    (h, w), (stride_y, stride_x) = test_cfg['crop_size'], test_cfg['stride']
    return (int(h), int(w)), (int(stride_y), int(stride_x))


def window_pixels(length: int, crop: int, stride: int) -> Tensor:
    """(n, crop) int64: the pixels of each window along an axis; the last window ends with the image."""
    return window_starts(length, crop, stride)[:, None] + torch.arange(crop)


def window_starts(length: int, crop: int, stride: int) -> Tensor:
    """(n,) int64: where the windows along an axis begin."""
    number = (length - crop + stride - 1) // stride + 1
    return (torch.arange(number) * stride).clamp(max=length - crop)


def merge(windows: Tensor, length: int, crop: int, stride: int, number: int) -> Tensor:
    """Averages what overlapping windows say about each pixel of an axis.

    Args:
        windows: (..., n * crop), one window after the other.
        length: Pixels along the axis.
        crop: Pixels of a window.
        stride: Between windows.
        number: n.

    Returns:
        (..., length).
    """
    starts = window_starts(length, crop, stride)
    pixels = torch.arange(length)
    first = torch.clamp((pixels - crop + stride) // stride, min=0)  # the first window that may reach the pixel
    total = count = windows.new_zeros(())
    for step in range(-(-crop // stride) + 1):  # the last window is shifted, so that one more may cover a pixel
        window = first + step
        exists = window < number
        window = window.clamp(max=number - 1)
        offset = pixels - starts[window]
        covers = exists & (offset >= 0) & (offset < crop)
        index = window * crop + offset.clamp(0, crop - 1)
        weight = covers.to(windows.dtype)
        total = total + windows[..., index] * weight
        count = count + weight
    return total / count
