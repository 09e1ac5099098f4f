"""mmseg's segmentor with bounded memory: class maps of large images are made in bands of rows.

mmseg resizes the logits of all classes to the image before it takes the largest: 14 GB for 150 classes and 24
megapixels. Here a band at a time is resized. What needs all of them at once (test-time augmentation adds them up) is
refused, with the figure, where memory is short.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor
from torch.nn import functional as F

MAX_LOGITS_BYTES = 1 << 28  # of one image at its own size; 150 classes at 512 x 870 px. Above, bands
BAND_BYTES = 1 << 27


@MODELS.register_module()
class TiledEncoderDecoder(EncoderDecoder):
    """mmseg's ``EncoderDecoder`` for images of any size; arguments are the same.

    Results are mmseg's, but for images whose logits exceed :data:`MAX_LOGITS_BYTES` at their own size there are no
    ``seg_logits``, and ``pred_sem_seg`` is int16.
    """

    def inference(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Logits (N, C, H, W) at the size of the inputs.

        Raises:
            MemoryError: If they do not fit into memory; the message has the figure.
        """
        height, width = inputs.shape[2:]
        sliding = self.test_cfg.get('mode') == 'slide'  # a sum of windows, each padded to the whole
        _require_memory(self.out_channels, height, width, len(inputs) * (3 if sliding else 2), inputs.device)
        return super().inference(inputs, batch_img_metas)

    def postprocess_result(self, seg_logits: Tensor, data_samples: list[Any] | None = None) -> list[Any]:
        """Resizes logits to the images and takes the most probable class of each pixel.

        Args:
            seg_logits: (N, C, H, W).
            data_samples: Of each image; ``ori_shape`` is its size. They get the results.

        Raises:
            MemoryError: If test-time augmentation needs more than there is; the message has the figure.
        """
        num_classes = seg_logits.shape[1]
        if data_samples is None or num_classes == 1:
            return super().postprocess_result(seg_logits, data_samples)
        for logits, sample in zip(seg_logits, data_samples, strict=True):
            height, width = sample.ori_shape[:2]
            if 'flip' in sample.metainfo:  # of test-time augmentation, which adds up logits at the image's size
                _require_memory(num_classes, height, width, 3, logits.device)
            elif num_classes * height * width * logits.element_size() > MAX_LOGITS_BYTES:
                classes = class_map_in_bands(_unpadded(logits, sample.metainfo), (height, width), self.align_corners)
                sample.set_data(dict(pred_sem_seg=PixelData(data=classes[None])))
                continue
            super().postprocess_result(logits[None], [sample])
        return data_samples


def class_map_in_bands(
    logits: Tensor, size: tuple[int, int], align_corners: bool = False, band_bytes: int = BAND_BYTES
) -> Tensor:
    """The most probable class of each pixel of logits resized bilinearly, as ``F.interpolate`` and ``argmax`` give it.

    Args:
        logits: (C, h, w).
        size: Height and width of the result.
        align_corners: As for ``F.interpolate``.
        band_bytes: Memory of the resized logits that exist at a time, at least one row.

    Returns:
        (H, W) int16; where two classes differ by a rounding error, it may be the other one.
    """
    num_classes, source_height = logits.shape[:2]
    height, width = size
    rows = torch.arange(height, dtype=torch.float32, device=logits.device)
    if align_corners:
        position = rows * ((source_height - 1) / max(height - 1, 1))
    else:
        position = ((rows + 0.5) * (source_height / height) - 0.5).clamp_min(0)
    upper = position.floor().long().clamp_max(source_height - 1)
    lower = (upper + 1).clamp_max(source_height - 1)
    share = (position - upper).to(logits.dtype)[:, None]
    classes = torch.empty(size, dtype=torch.int16, device=logits.device)
    step = max(1, band_bytes // (num_classes * width * logits.element_size()))
    for top in range(0, height, step):
        band = slice(top, top + step)
        first, last = int(upper[band][0]), int(lower[band][-1])
        wide = F.interpolate(
            logits[None, :, first : last + 1], (last + 1 - first, width), mode='bilinear', align_corners=align_corners
        )[0]
        above, below = wide[:, upper[band] - first], wide[:, lower[band] - first]
        classes[band] = torch.lerp(above, below, share[band]).argmax(0).to(torch.int16)
    return classes


def _unpadded(logits: Tensor, metainfo: dict[str, Any]) -> Tensor:
    """Logits without what the preprocessor padded."""
    left, right, top, bottom = metainfo.get('img_padding_size', metainfo.get('padding_size', [0] * 4))
    height, width = logits.shape[1:]
    return logits[:, top : height - bottom, left : width - right]


def _require_memory(num_classes: int, height: int, width: int, copies: int, device: torch.device) -> None:
    """Raises :class:`MemoryError` if float32 scores of all classes would not fit."""
    needed, free = 4.0 * num_classes * height * width * copies, _free_bytes(device)
    if needed > free:
        raise MemoryError(
            f'the scores of {num_classes} classes for {width} x {height} pixels take {needed / 1e9:.1f} GB in '
            f'{copies} copies, and {free / 1e9:.1f} GB are free: let the test pipeline resize the image (Resize), '
            'leave test-time augmentation out, or cut the image into pieces'
        )


def _free_bytes(device: torch.device) -> float:
    """Memory that can be allocated; infinity where nobody tells."""
    if device.type == 'cuda':
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith('MemAvailable'))
    except (OSError, StopIteration, ValueError):
        return float('inf')
