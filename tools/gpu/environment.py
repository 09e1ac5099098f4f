"""The machine that a figure is from: versions, card; and check 0, that everything imports there."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from typing import Any

import torch

from tools.gpu.checks import OPENMMLAB
from tools.gpu.light_imports import missing_packages
from tools.gpu.report import Report

DISTRIBUTIONS = (
    'torchvision',
    'timm',
    'triton',
    'numpy',
    'transformers',
    'onedl-mmengine',
    'onedl-mmcv',
    'onedl-mmdetection',
    'onedl-mmsegmentation',
)
SMALLEST_CAPABILITY = (8, 0)  # bfloat16, the Triton kernel


def describe(device: torch.device) -> dict[str, Any]:
    """The card, its driver's CUDA, and versions, as JSON's types."""
    facts: dict[str, Any] = dict(python=platform.python_version(), torch=torch.__version__, card='none (CPU)')
    for name in DISTRIBUTIONS:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = None
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        facts.update(
            card=properties.name,
            capability=f'{properties.major}.{properties.minor}',
            memory_gib=round(properties.total_memory / 2**30, 1),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            num_cards=torch.cuda.device_count(),
        )
    return facts


def versions(device: torch.device, report: Report) -> None:
    """Check 0: what can be imported; the kernels' order; whether the card computes and is new enough."""
    facts = describe(device)
    report.note('machine', facts)
    report.note('switched on', {name: getattr(torch.backends.cuda, f'{name}_enabled')() for name in
                                ('flash_sdp', 'mem_efficient_sdp', 'math_sdp', 'cudnn_sdp')})  # fmt: skip
    order = getattr(torch._C, '_get_sdp_priority_order', None)
    report.note('order of backends', order() if order and device.type == 'cuda' else None)
    missing = missing_packages(OPENMMLAB)
    report.note('missing packages', missing)
    modules = ['addp_backbone.layers.attention', 'pretrain.generation.trajectory']
    if not missing:
        modules += ['addp_backbone', 'pretrain.training', 'pretrain.classification', 'mmdet.models', 'mmseg.models']
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken installation raises is the finding
            report.require(False, f'import {name}: {type(error).__name__}: {error}')
    product = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
    report.require(float(product.sum()) == 64**3, 'a product of matrices of ones is wrong')
    if device.type == 'cuda':
        capability = torch.cuda.get_device_capability(device)
        report.require(
            capability >= SMALLEST_CAPABILITY,
            f'compute capability {capability}, wanted at least {SMALLEST_CAPABILITY} (bfloat16, Triton kernel)',
        )
    report.figure = f'{facts["card"]}, torch {facts["torch"]}' + (f', without {", ".join(missing)}' if missing else '')
