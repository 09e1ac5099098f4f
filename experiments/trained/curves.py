"""Scores by iteration: what trainings measured on the way, as charts."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.probes.chart import Point, line_chart
from experiments.probes.seeds import deviation_of
from experiments.trained.protocols import TrainedJob

# Measure of a row -> its name in the log of a training, and what makes it per cent.
_LOGGED = {'mIoU': ('mIoU', 1.0), 'AP box': ('coco/bbox_mAP', 100.0), 'AP mask': ('coco/segm_mAP', 100.0)}


def read_curve(folder: Path, measure: str) -> dict[int, float]:
    """What a training measured on the way.

    Args:
        folder: Its work dir.
        measure: As rows name it.

    Returns:
        Iteration (or epoch, where the config counts epochs) -> score in per cent, ascending. Of several runs into one
        folder, and of a line that a kill cut, what was written last and whole counts.
    """
    name, factor = _LOGGED[measure]
    found: dict[int, float] = {}
    for file in sorted(folder.glob('*/vis_data/scalars.json'), key=lambda path: path.parts[-3]):
        for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and name in record and 'step' in record:
                found[int(record['step'])] = factor * float(record[name])
    return dict(sorted(found.items()))


def curve_charts(jobs: Sequence[TrainedJob]) -> str:
    """A chart for each protocol and measure that was measured more than once in a training; '' for none.

    Points are means over the seeds that have them, with their standard deviation.
    """
    parts = []
    for name in dict.fromkeys(job.name for job in jobs):
        for measure in _LOGGED:
            curves = {}
            for backbone in dict.fromkeys(job.backbone for job in jobs if job.name == name):
                chosen = [job for job in jobs if (job.name, job.backbone) == (name, backbone)]
                points = _mean_points([read_curve(job.train.file(), measure) for job in chosen])
                if points:
                    curves[backbone] = points
            if any(len(points) > 1 for points in curves.values()):
                parts.append(f'<h3>{html.escape(name)}</h3>{line_chart(curves, "iteration", f"{measure} (%)")}')
    return '\n'.join(parts)


def _mean_points(curves: Sequence[dict[int, float]]) -> list[Point]:
    points = []
    for step in sorted({step for curve in curves for step in curve}):
        values = [curve[step] for curve in curves if step in curve]
        points.append(Point(float(step), float(np.mean(values)), deviation_of(values)))
    return points
