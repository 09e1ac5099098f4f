"""What all exported graphs begin with: backbone and neck."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class FeatureGraph(nn.Module):
    """A backbone, with or without the neck behind it; graphs of whole models go on from its maps.

    Args:
        backbone: In a form that traces.
        neck: None for the backbone alone.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module | None) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps images (B, 3, H, W), normalised, to feature maps."""
        maps = self.backbone(images)
        return tuple(maps if self.neck is None else self.neck(maps))


class PartGraph(FeatureGraph):
    """Backbone and neck as a graph of their own."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`FeatureGraph.features` returns."""
        return self.features(images)


def neck_of(model: Any) -> nn.Module | None:
    """The neck of a detector or segmentor, if it has one."""
    return model.neck if getattr(model, 'with_neck', False) else None
