"""How long a model takes for prepared images: in torch, compiled, and as an ONNX file, on the same input."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from addp_backbone.export.onnx_model import OnnxModel
from addp_backbone.export.plan import Plan

WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Seconds that repeated calls took.

    Attributes:
        name: What was called.
        seconds: Of each call.
        note: Why there are none; empty if there are.
    """

    name: str
    seconds: tuple[float, ...] = ()
    note: str = ''

    def row(self) -> list[str]:
        """Name, median and 10th and 90th percentile in milliseconds."""
        if not self.seconds:
            return [self.name, self.note, '', '']
        points = statistics.quantiles(self.seconds, n=10, method='inclusive')
        middle = statistics.median(self.seconds)
        return [self.name, *(f'{1000 * value:.1f}' for value in (middle, points[0], points[-1]))]


def measure(name: str, call: Callable[[], Any], repeats: int) -> Timing:
    """Times ``repeats`` calls, at least 2, after two that do not count."""
    for _ in range(WARM_UP):
        call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return Timing(name, tuple(seconds))


def compare_latency(
    model: Any, plan: Plan, onnx_model: OnnxModel, images: Tensor, samples: list[Any], repeats: int
) -> list[Timing]:
    """Times a model in torch, and the graph that was made of it in torch, compiled and in onnxruntime.

    Args:
        model: The detector or segmentor in torch, on the CPU, in evaluation mode.
        plan: Its plan.
        onnx_model: Its file.
        images: (B, 3, H, W), prepared.
        samples: Data samples of the images, with ``img_shape``.
        repeats: Calls of each.

    Returns:
        A timing for each way. The first is backbone and neck alone; the second is ``model.predict``, which resizes
        class maps to the photograph or pastes masks into it besides; the others compute what is in the file.
    """
    sizes = [tuple(sample.img_shape[:2]) for sample in samples]
    inputs = (images, torch.tensor(sizes)) if plan.with_sizes else (images,)

    def features() -> Any:
        maps = model.backbone(images)
        return model.neck(maps) if getattr(model, 'neck', None) is not None else maps

    with torch.inference_mode():
        timings = [
            measure('torch, backbone and neck', features, repeats),
            measure('torch, model.predict', lambda: model.predict(images, samples), repeats),
            measure('torch, exported graph', lambda: plan.graph(*inputs), repeats),
        ]
    timings.append(_compiled(plan, inputs, repeats))
    arrays, boxes = images.numpy(), sizes if plan.with_sizes else None
    timings.append(measure('onnxruntime', lambda: onnx_model.run(arrays, boxes), repeats))
    return timings


def _compiled(plan: Plan, inputs: tuple[Tensor, ...], repeats: int) -> Timing:
    name = 'torch.compile, exported graph'
    if not any(shutil.which(program) for program in (os.environ.get('CXX', ''), 'g++', 'clang++', 'c++') if program):
        return Timing(name, note='no C++ compiler')
    try:
        with torch.no_grad():
            compiled = torch.compile(plan.graph, dynamic=False)
            return measure(name, lambda: compiled(*inputs), repeats)
    except Exception as error:  # whatever compilers raise: the other rows are still worth having
        return Timing(name, note=f'failed: {type(error).__name__}')


def format_table(timings: Sequence[Timing]) -> str:
    """One table: median, 10th and 90th percentile in milliseconds."""
    rows = [['', 'median ms', '10 %', '90 %'], *(timing.row() for timing in timings)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return '\n'.join(
        '  '.join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
