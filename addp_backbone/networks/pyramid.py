"""``SimpleFeaturePyramid``: several scales from the last map of a plain ViT (ViTDet, arXiv 2203.16527, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone.checkpoint.storage import load_pretrained


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Makes a pyramid of maps from the last map of a backbone.

    Args:
        in_channels: Channels of the backbone's map.
        out_channels: Channels of every level.
        scales: Size of each level relative to the backbone's map: 4, 2, 1, 0.5 or 0.25, descending; ViTDet's four by
            default.
        num_outs: Number of maps returned; each one beyond ``len(scales)`` is the previous one at every second pixel
            (ViTDet's P6).
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` with a ``*.neck.*`` file that
            ``tools/convert_checkpoint.py`` writes for detectron2 models; it must hold every tensor.

    Raises:
        ValueError: If a scale is unknown or fewer maps are wanted than there are scales.
    """

    def __init__(
        self,
        in_channels: int = 768,
        out_channels: int = 256,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_outs < len(scales):
            raise ValueError(f'num_outs must be at least the number of scales, {len(scales)}, got {num_outs}')
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.levels = nn.ModuleList(_make_level(scale, in_channels, out_channels) for scale in scales)

    def init_weights(self) -> None:
        """Loads ``init_cfg``'s file, if any; otherwise torch's default initialisation stays (as in ViTDet).

        Raises:
            CheckpointError: If the file is missing or unreadable, or not every tensor came from it.
        """
        if self.init_cfg is not None and self.init_cfg.get('type') == 'Pretrained':
            load_pretrained(self, self.init_cfg, optional=())
            self._is_init = True
        else:
            super().init_weights()

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Makes the pyramid.

        Args:
            inputs: Maps (B, in_channels, H, W) of the backbone; the last one is used.

        Returns:
            ``num_outs`` maps (B, out_channels, H * scale, W * scale), finest first.
        """
        x = inputs[-1]
        outs = [level(x) for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
        return tuple(outs)


def _make_level(scale: float, in_channels: int, out_channels: int) -> nn.Sequential:
    """Resampling, then 1x1 conv + norm and 3x3 conv + norm, the convs without bias."""
    channels = in_channels
    resample: list[nn.Module]
    if scale == 4:
        half, channels = in_channels // 2, in_channels // 4
        resample = [
            nn.ConvTranspose2d(in_channels, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, channels, 2, stride=2),
        ]
    elif scale == 2:
        channels = in_channels // 2
        resample = [nn.ConvTranspose2d(in_channels, channels, 2, stride=2)]
    elif scale == 1:
        resample = []
    elif scale in (0.5, 0.25):
        resample = [nn.MaxPool2d(round(1 / scale))]
    else:
        raise ValueError(f'scales must be among 4, 2, 1, 0.5 and 0.25, got {scale}')
    return nn.Sequential(
        *resample,
        nn.Conv2d(channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )
