"""Check 13: operations for which the CPU waits for the GPU, in an iteration of the backbone and of ADDP."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tools.benchmark.device_ops import DeviceOps
from tools.gpu.networks import make_addp
from tools.gpu.report import Report


def host_syncs(device: torch.device, report: Report) -> None:
    """Check 13: none in the backbone's blocks; ADDP's are reported."""
    from addp_backbone.layers.block import Block

    big = device.type == 'cuda'
    side = 32 if big else 8
    block = Block(768 if big else 48, 12 if big else 3, window_size=14 if big else 3, rel_pos_size=14 if big else 3)
    block = block.to(device)
    x = torch.randn(2, side * side, 768 if big else 48, device=device, requires_grad=True)
    report.note('a block', _count(lambda: block(x, (side, side)).sum().backward(), block, [x]))
    found = sum(report.values['a block'].values())
    report.require(not found, f'a block of the backbone makes the CPU wait {found} times: {report.values["a block"]}')
    model = make_addp(big, frozen_dtype='bf16').to(device).train()
    images = torch.rand(2, 3, model.img_size, model.img_size, device=device)
    ranks = torch.rand(2, model.num_tokens, device=device).argsort(1).argsort(1)
    masks = ranks < model.num_tokens // 2, ranks < 3 * model.num_tokens // 4

    def step() -> None:
        sample = model.diffuse(images, *masks)
        model.masked_loss(sample, masks[0], num_masked=model.num_tokens // 2).backward()

    report.note("ADDP's step", _count(step, model, [images, *masks]))
    total = sum(report.values["ADDP's step"].values())
    report.figure = f"block {found}, ADDP's step {total}"


def _count(call: Callable[[], Any], model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Waits in a second call, as the first tries kernels out: by operations, on CUDA also as torch reports them."""
    call()
    with DeviceOps([*model.parameters(), *model.buffers(), *inputs]) as ops:
        call()
    counts = dict(ops.waits)
    if inputs[0].is_cuda and (reported := _reported_by_torch(call)):
        counts['reported by torch'] = reported
    return counts


def _reported_by_torch(call: Callable[[], Any]) -> int:
    """Number of synchronising calls that torch warns of."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    # not its notice, once in a process, that the mode is a prototype and misses some synchronizing operations
    return sum('called a synchronizing' in str(warning.message) for warning in caught)
