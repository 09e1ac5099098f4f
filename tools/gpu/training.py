"""Checks 11 and 12: every stage trains in every precision, and resumes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from tools.gpu.measuring import DTYPES, precisions
from tools.gpu.networks import LEAST_NOISE, NOISE_FACTOR
from tools.gpu.report import Report
from tools.gpu.stages import FIRST_SCALE, LEAVES, Training, load_stage, train_stage, weights_differ, write_data

ITERS, BATCH_SIZE = 20, 8
CPU_ITERS, CPU_BATCH_SIZE = 2, 2
LOSS_TOLERANCE = 0.02  # of the mean loss, against float32
# Assumed: from random weights, rounding decides which proposals a detector's second stage gets; two iterations on the
# CPU average over few of them.
DETECTOR_TOLERANCE, CPU_DETECTOR_TOLERANCE = 0.05, 0.3
LEAST_SCALE, MOST_SKIPPED = 1024.0, 3


def trainings(device: torch.device, report: Report) -> None:
    """Check 11: the mean loss of 20 iterations in 16 bits is float32's; the loss scale of float16 settles."""
    big = device.type == 'cuda'
    iters, batch_size = (ITERS, BATCH_SIZE) if big else (CPU_ITERS, CPU_BATCH_SIZE)
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        data = write_data(Path(name) / 'data', 4 * batch_size)
        for stage in LEAVES:
            means = {}
            for dtype in precisions(device):
                work_dir = Path(name) / f'{stage}_{DTYPES[dtype]}'.replace(' ', '_')
                run = train_stage(load_stage(stage, data, work_dir, dtype, iters, batch_size))
                means[DTYPES[dtype]] = sum(run.losses) / len(run.losses)
                report.note(f'mean losses of {stage}', means)
                difference = abs(means[DTYPES[dtype]] / means['fp32'] - 1)
                worst = max(worst, difference)
                tolerance = LOSS_TOLERANCE
                if stage == 'Mask R-CNN':
                    tolerance = DETECTOR_TOLERANCE if big else CPU_DETECTOR_TOLERANCE
                report.at_most(f'{stage}, {DTYPES[dtype]} against fp32', difference, tolerance)
                _check_scale(run, f'{stage}, {DTYPES[dtype]}', report)
                report.figure = f'mean losses within {worst:.2%} of fp32'


def _check_scale(run: Training, name: str, report: Report) -> None:
    """The dynamic loss scale of float16: each overflow halves it and skips a step."""
    if not run.scales:
        return
    skipped = sum(after < before for before, after in zip((FIRST_SCALE, *run.scales), run.scales, strict=False))
    report.at_least(f'{name}, loss scale', run.scales[-1], LEAST_SCALE)
    report.at_most(f'{name}, skipped steps', skipped, MOST_SKIPPED)


def resume(device: torch.device, report: Report) -> None:
    """Check 12: a run resumed at 3 of 6 iterations ends as near an unbroken one as two equal runs are."""
    big = device.type == 'cuda'
    dtype, batch_size = (torch.float16, 4) if big else (torch.bfloat16, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_data(folder / 'data', 8)
        stages = ('ADDP', 'UperNet') if big else ('ADDP',)
        for stage in stages:

            def run(label: str, stage: str = stage, resume: str | None = None) -> Training:
                cfg = load_stage(stage, data, folder / f'{stage}_{label}', dtype, 6, batch_size)
                return train_stage(cfg, resume)

            first, second = run('first'), run('second')
            resumed = run('resumed', resume=str(first.work_dir / 'iter_3.pth'))
            noise, error = weights_differ(second, first), weights_differ(resumed, first)
            report.note(f'{stage}: noise of two equal runs', noise)
            report.at_most(f'{stage}: resumed', error, NOISE_FACTOR * noise + LEAST_NOISE)
            report.require(
                resumed.scales == first.scales[3:],
                f'{stage}: loss scales {resumed.scales} after the resume, {first.scales[3:]} without',
            )
            report.figure = f'{stage} in {DTYPES[dtype]}: resumed {error:.1e}, noise {noise:.1e}'
