"""Check 14: throughput and peak memory at real batches; on a CPU the smallest sizes, once, to test the check itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from addp_backbone.layers.attention import Kernel
from tools.benchmark.backbone import Job, make_backbone, make_peer
from tools.gpu.kernels import forced
from tools.gpu.light_imports import missing_packages
from tools.gpu.measuring import DTYPES, autocast, peak_memory, time_ms
from tools.gpu.networks import make_addp
from tools.gpu.report import Report
from tools.gpu.stages import load_stage, write_data

BATCH_SIZES = dict(backbone=4, detector=8, addp=64)  # a card's, as in the configs; halved where memory is short


def throughput(device: torch.device, report: Report) -> None:
    """Check 14: reported, nothing is required; every part is measured though another one fails."""
    for part in (_backbones, _detector, _addp_steps, _optimizers, _backbones_in_float32):
        try:
            part(device, report)
        except (RuntimeError, ValueError, ImportError) as error:
            report.require(False, f'{part.__name__.strip("_")}: {type(error).__name__}: {str(error)[:200]}')
        if device.type == 'cuda':
            torch.cuda.empty_cache()
    report.figure = report.lines[0] if report.lines else ''


def _rate(report: Report, name: str, call: Callable[[], Any], images: int, device: torch.device) -> None:
    """Measures a call's images a second and its peak memory."""
    call()
    with peak_memory(device) as peak:
        call()
    rate = images / time_ms(call, device, repeats=5, warmup=1) * 1e3
    report.measured(name, rate, 'images/s', f'peak {peak.mib / 1024:.2f} GiB above weights and inputs')


def _backbones(device: torch.device, report: Report) -> None:
    """ViT-B at 1024 px in bfloat16: ours by each kernel, without positions, TimmViT, and HF transformers' VitDet."""
    from addp_backbone import TimmViT

    big = device.type == 'cuda'
    job = _job(big)
    networks: dict[str, tuple[nn.Module, Kernel | None]] = {
        **_ours(job),
        'ours without positions': (_without_positions(job), None),
    }
    if not big or missing_packages(('transformers',)):
        report.note('HF VitDet', 'left out: on a CPU, or transformers is not installed')
    else:
        networks['HF VitDet'] = (make_peer(replace(job, mode='train')), None)
        timm = TimmViT('vit_base_patch16_224', img_size=job.img_size, window_size=14, global_attn_indices='auto')
        networks['TimmViT without positions'] = (timm, None)
    _measure_backbones(networks, job, torch.bfloat16 if big else torch.float32, device, report)


def _backbones_in_float32(device: torch.device, report: Report) -> None:
    """Ours in float32 by each kernel, without TF32."""
    if device.type == 'cuda':
        _measure_backbones(_ours(_job(True)), _job(True), torch.float32, device, report)


def _job(big: bool) -> Job:
    return Job('train', img_size=1024 if big else 64, arch='base' if big else 'tiny')


def _ours(job: Job) -> dict[str, tuple[nn.Module, Kernel | None]]:
    ours = make_backbone(job)
    return {'ours': (ours, None), 'ours, columns': (ours, Kernel.FUSED)}


def _measure_backbones(
    networks: dict[str, tuple[nn.Module, Kernel | None]],
    job: Job,
    dtype: torch.dtype,
    device: torch.device,
    report: Report,
) -> None:
    """Forward pass and training of each network."""
    batch = BATCH_SIZES['backbone'] if device.type == 'cuda' else 1
    images = torch.randn(batch, 3, job.img_size, job.img_size, device=device)
    for name, (network, kernel) in networks.items():
        label = f'ViT-{job.arch} {job.img_size} px batch {batch} {DTYPES[dtype]}, {name}'
        network.to(device)
        with forced(kernel):
            forward = _forward(network, images, dtype)
            with torch.no_grad():
                _rate(report, f'{label}, forward', forward, batch, device)
            _rate(report, f'{label}, training', _train(network, forward), batch, device)


def _without_positions(job: Job) -> nn.Module:
    from addp_backbone import ADDPViT

    return ADDPViT(job.arch, img_size=job.img_size, rel_pos=False)


def _forward(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with autocast(images.device, dtype):
            out = network(images)
        return (out[-1] if isinstance(out, tuple) else out.feature_maps[-1]).float().square().mean()

    return forward


def _train(network: nn.Module, forward: Callable[[], Tensor]) -> Callable[[], None]:
    def step() -> None:
        forward().backward()
        network.zero_grad(set_to_none=True)

    return step


def _addp_steps(device: torch.device, report: Report) -> None:
    """ADDP's step under bfloat16 autocast, its frozen networks in each precision."""
    big = device.type == 'cuda'
    batch = BATCH_SIZES['addp'] if big else 2
    for frozen in (None, 'bf16', 'fp16') if big else (None, 'bf16'):
        model = make_addp(big, frozen_dtype=frozen).to(device).train()
        model.tokenizer.lay_out()
        images = torch.rand(batch, 3, model.img_size, model.img_size, device=device)
        ranks = torch.rand(batch, model.num_tokens, device=device).argsort(1).argsort(1)
        masks = ranks < model.num_tokens // 2, ranks < 3 * model.num_tokens // 4

        def forward(model: nn.Module = model, images: Tensor = images, masks: Any = masks) -> Tensor:
            with autocast(device, torch.bfloat16):
                return model(images, *masks)

        name = f'ADDP {"ViT-B" if big else "smallest"} step, batch {batch}, bf16, frozen_dtype={frozen}'
        _rate(report, name, _train(model, forward), batch, device)


def _detector(device: torch.device, report: Report) -> None:
    """A whole training step of Mask R-CNN, optimizer included, and the share of it in which the GPU works."""
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import DATASETS, FUNCTIONS, MODELS, init_default_scope

    from tools.gpu.stages import ROOT

    big = device.type == 'cuda'
    batch = BATCH_SIZES['detector'] if big else 1
    with tempfile.TemporaryDirectory() as name:
        data = write_data(Path(name) / 'data', 8)
        cfg = load_stage('Mask R-CNN', data, Path(name) / 'work', torch.bfloat16, 1, batch)
        dataset = cfg.train_dataloader.dataset
        if big:
            cfg = Config.fromfile(ROOT / 'det_configs' / 'addp_base_maskrcnn.py')
            cfg.model.backbone.init_cfg = None
            dataset.pipeline = cfg.train_dataloader.dataset.pipeline
            cfg.optim_wrapper.update(type='BFloat16OptimWrapper')
        init_default_scope('mmdet')
        samples = DATASETS.build(dataset)
        batch_of = FUNCTIONS.get('pseudo_collate')([samples[i % len(samples)] for i in range(batch)])
        model = MODELS.build(cfg.model).to(device).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    name = f'Mask R-CNN {"ViT-B 1024 px" if big else "tiny 128 px"}, training step, batch {batch}, bf16'
    _rate(report, name, lambda: model.train_step(batch_of, wrapper), batch, device)
    if big:
        report.note(
            'share of the time in which the GPU works', _busy_share(lambda: model.train_step(batch_of, wrapper))
        )


def _busy_share(call: Callable[[], Any]) -> float:
    """Kernel time relative to wall time, both by torch's profiler, which slows the CPU's side down."""
    import time

    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        wall_us = (time.perf_counter() - start) * 1e6
    # Kernels alone: the operations that launched them are listed with the same times.
    kernels = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
    return sum(event.self_device_time_total for event in kernels) / wall_us


def _optimizers(device: torch.device, report: Report) -> None:
    """AdamW's step on a ViT-L's worth of parameters, foreach against fused."""
    sizes = [(4096, 1024), (1024, 4096), (3072, 1024), (1024, 1024), (1024,), (1024,)] * (
        24 if device.type == 'cuda' else 1
    )
    for name in ('foreach', 'fused'):
        parameters = [nn.Parameter(torch.zeros(size, device=device)) for size in sizes]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.AdamW(parameters, foreach=name == 'foreach', fused=name == 'fused')
        number = sum(p.numel() for p in parameters) / 1e6
        report.measured(f'AdamW, {number:.0f} M parameters, {name}', time_ms(optimizer.step, device), 'ms')
