"""What to export: the part of a model, its inputs and outputs by name, the sizes it takes, and its description.

=========  ==================================================  ======================================================
part       inputs                                              outputs
=========  ==================================================  ======================================================
backbone   ``images``                                          ``map_0`` ..., as the backbone returns them
neck       ``images``                                          ``map_0`` ..., backbone and neck (pyramid)
model      ``images``                                          ``logits``, ``class_map`` (segmentor)
model      ``images``, ``sizes``                               ``boxes``, ``scores``, ``labels``, ``counts`` and
                                                               ``masks`` (detector)
=========  ==================================================  ======================================================

The batch is free. Height and width are free where the backbone is ``ADDPViT`` and where a segmentor slides windows of a
fixed size; otherwise the graph is made for one size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

PARTS = ('model', 'neck', 'backbone')
MAX_SIDE_PX = 65536


class ExportError(ValueError):
    """A model cannot be exported as asked; the message says why and what can be."""


@dataclass(frozen=True)
class Sizes:
    """The input sizes that a graph takes.

    Attributes:
        fixed: (height, width) in pixels, or None if they are free.
        multiple: Height and width are multiples of it.
        smallest: Least height and width where they are free.
        reason: Why the size is fixed; empty if it is not, or if it was asked for.
        traced_from: Height and width from which the graph is traced, where that is more than the least: see
            :meth:`dimensions`.
    """

    fixed: tuple[int, int] | None
    multiple: int
    smallest: tuple[int, int]
    reason: str = ''
    traced_from: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.fixed is not None:
            return f'size {self.fixed[0]} x {self.fixed[1]}' + (f' ({self.reason})' if self.reason else '')
        least = f'at least {self.smallest[0]} x {self.smallest[1]}'
        return f'any size of {least}' if self.multiple == 1 else f'any size in multiples of {self.multiple}'

    def example(self) -> tuple[int, int]:
        """A height and a width to trace with: neither equal nor the least, so that nothing is taken for constant."""
        if self.fixed is not None:
            return self.fixed
        step = self.multiple
        height, width = (-(-side // step) * step for side in self.traced_from or self.smallest)
        return height + 2 * step, width + 3 * step

    def dimensions(self) -> dict[int, Any]:
        """What is free of (B, 3, H, W), for ``torch.export``.

        The least sizes are left out: with one window or one step torch would make another graph, for those sizes only.
        The graph of larger sizes is right for them, too.
        """
        free: dict[int, Any] = {0: Dim('batch')}
        if self.fixed is None:
            for axis, name, least in zip((2, 3), ('height', 'width'), self.traced_from or self.smallest, strict=True):
                if self.multiple == 1:
                    free[axis] = Dim(name, min=least + 1, max=MAX_SIDE_PX)
                else:
                    steps = Dim(f'{name}_steps', min=-(-least // self.multiple) + 1, max=MAX_SIDE_PX // self.multiple)
                    free[axis] = self.multiple * steps
        return free


@dataclass(frozen=True)
class Plan:
    """A graph ready for the exporter.

    Attributes:
        graph: Module in evaluation mode.
        sizes: What it takes.
        with_sizes: Whether it has the second input, the images' sizes without padding.
        outputs: Names of the outputs.
        metadata: Description for the file; values are JSON.
    """

    graph: nn.Module
    sizes: Sizes
    with_sizes: bool
    outputs: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return ('images', 'sizes') if self.with_sizes else ('images',)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with: two images."""
        height, width = self.sizes.example()
        images = torch.zeros(2, 3, height, width)
        return (images, torch.tensor([[height, width]] * 2)) if self.with_sizes else (images,)

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """What is free of each input."""
        dimensions = self.sizes.dimensions()
        return (dimensions, {0: dimensions[0]}) if self.with_sizes else (dimensions,)
