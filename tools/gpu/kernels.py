"""Checks of attention: which kernels serve, values and gradients, memory and time of a global block at 1024 px."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from addp_backbone.layers import attention
from addp_backbone.layers.attention import Kernel, attend, choose_kernel
from addp_backbone.layers.block import Block
from tools.gpu.measuring import (
    DTYPES,
    autocast,
    peak_memory,
    precisions,
    relative_error,
    saved_mib,
    time_ms,
)
from tools.gpu.reference import attention_by_definition
from tools.gpu.report import Report

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # relative norms
GRIDS = ((20, 20, 14), (32, 32, 0), (16, 40, 0))  # rows, columns, window
SHAPES = {  # of torch's fused attention: images or windows, heads, tokens, width of keys, of values
    'window of 14, relative positions as columns': (8, 12, 196, 96, 96),
    'global at 1024 px, relative positions as columns': (1, 12, 4096, 192, 192),
    'the same, values 128 wide': (1, 12, 4096, 192, 128),
    'global at 512 px, relative positions as columns': (1, 12, 1024, 128, 128),
    'encoder of ADDP': (4, 12, 257, 64, 64),
    'decoder of ADDP, 40 tokens known': (4, 16, 297, 48, 48),
    'decoder of ADDP, 128 tokens known': (4, 16, 385, 48, 48),
    'decoder of ADDP, all tokens known': (4, 16, 513, 48, 48),
}
FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
GLOBAL_BLOCK_MIB = 384
HEADS, HEAD_WIDTH, WINDOW = 12, 64, 14  # ViT-B


def fused_kernels(device: torch.device, report: Report) -> None:
    """Check 1: torch's fused attention never falls back to plain products of matrices."""
    served = {}
    for name, (B, heads, N, key_width, value_width) in SHAPES.items():
        if device.type == 'cpu':
            B, N = 1, min(N, 300)
            if key_width != value_width:
                continue
        for dtype in precisions(device):
            for trained in (False, True):
                shapes = [(B, heads, N, width) for width in (key_width, key_width, value_width)]
                q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=trained) for shape in shapes)
                label = f'{name}, {DTYPES[dtype]}{", with gradients" if trained else ""}'
                served[label] = chosen = _backend_of(q, k, v)
                report.require(chosen != 'MATH' and _runs_fused(q, k, v), f'{label}: served by {chosen}')
                report.note('kernel of', served)
    ours = {}
    for dtype in precisions(device):
        for size in (14, 64):
            kernel = choose_kernel(device, dtype, HEAD_WIDTH, (size, size), dropout=False)
            ours[f'relative positions {size} x {size}, {DTYPES[dtype]}'] = kernel.name
    report.note("this project's choice", ours)
    counts = sorted({(value, sum(v == value for v in served.values())) for value in served.values()})
    report.figure = (
        f'{", ".join(f"{name} {count}" for name, count in counts)}; ours {"/".join(sorted({*ours.values()}))}'
    )


def _backend_of(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The name of the backend that torch chooses."""
    choice = torch._fused_sdp_choice(q, k, v)
    return {int(backend.value): name for name, backend in SDPBackend.__members__.items()}.get(choice, str(choice))


def _runs_fused(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether some fused kernel computes it, forward and backward."""
    try:
        with sdpa_kernel(list(FUSED)):
            out = F.scaled_dot_product_attention(q, k, v)
        if out.requires_grad:
            out.sum().backward()
    except RuntimeError:  # no kernel, or one that cannot run
        return False
    return True


def values_and_gradients(device: torch.device, report: Report) -> None:
    """Check 2: attention's output and all gradients against its definition in float64, for every kernel there is."""
    worst = 0.0
    for dtype in precisions(device):
        for rows, columns, window in GRIDS if device.type == 'cuda' else GRIDS[:1]:
            leaves, weight = _inputs(rows, columns, window, dtype)
            wanted = _with_gradients(attention_by_definition, leaves, weight, (rows, columns), window)
            for kernel in kernels_with_positions(device, dtype, window or columns):
                with forced(kernel):
                    moved = [x.to(device, dtype) for x in (*leaves, weight)]
                    got = _with_gradients(attend, moved[:-1], moved[-1], (rows, columns), window)
                error = max(relative_error(a, b) for a, b in zip(got, wanted, strict=True))
                worst = max(worst, error / TOLERANCES[dtype])
                report.at_most(
                    f'{kernel.name} {rows} x {columns} window {window} {DTYPES[dtype]}', error, TOLERANCES[dtype]
                )
    report.figure = f'largest error {worst:.0%} of its tolerance'


def kernels_with_positions(device: torch.device, dtype: torch.dtype, size: int) -> list[Kernel]:
    """The kernels that serve relative positions on a device, of a grid that is ``size`` wide."""
    if device.type == 'cpu':
        return [Kernel.RELATIVE_BLOCKS, *([Kernel.FUSED] if dtype is torch.float32 else [])]
    kernels = [Kernel.FUSED]
    if attention._passes_trial(Kernel.TRITON, device, dtype, HEAD_WIDTH, None):
        kernels.append(Kernel.TRITON)
    if attention._serves(Kernel.CUDNN, device, dtype, HEAD_WIDTH, (size, size)):
        kernels.append(Kernel.CUDNN)
    return kernels


@contextmanager
def forced(kernel: Kernel | None) -> Iterator[None]:
    """Has ``attend`` take a kernel; None leaves its choice."""
    before = attention.choose_kernel
    if kernel is not None:
        attention.choose_kernel = lambda *_, **__: kernel
    try:
        yield
    finally:
        attention.choose_kernel = before


def _inputs(rows: int, columns: int, window: int, rounded_to: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """q, k, v, padding, the two tables, and the weight of the output; float64 on the CPU, rounded to a precision."""
    generator = torch.Generator().manual_seed(0)
    tables = [(2 * (window or side) - 1, HEAD_WIDTH) for side in (rows, columns)]
    shapes = [(1, rows * columns, 2, HEAD_WIDTH)] * 3 + [
        (3, 2, HEAD_WIDTH),
        *tables,
        (1, rows * columns, 2, HEAD_WIDTH),
    ]
    *leaves, weight = ((torch.randn(s, generator=generator) * 0.5).to(rounded_to).double() for s in shapes)
    return leaves, weight


def _with_gradients(
    function: Callable[..., Tensor], leaves: list[Tensor], weight: Tensor, grid: tuple[int, int], window: int
) -> list[Tensor]:
    """Output and the gradients of all inputs that matter."""
    leaves = [x.clone().requires_grad_() for x in leaves]
    q, k, v, padding, row_table, column_table = leaves
    out = function(q, k, v, grid=grid, window_size=window, padding=padding, rel_pos=(row_table, column_table))
    used = leaves if window and any(side % window for side in grid) else [q, k, v, row_table, column_table]
    return [out, *torch.autograd.grad(out, used, weight)]


def memory_of_a_global_block(device: torch.device, report: Report) -> None:
    """Check 3: a global block at 1024 px keeps nothing of N x N elements, forward and backward."""
    side = 64 if device.type == 'cuda' else 24
    block, x = _global_block(device, side)
    for dtype in precisions(device):

        def forward(dtype: torch.dtype = dtype) -> Tensor:
            with autocast(device, dtype):
                return block(x, (side, side))

        forward().float().sum().backward()  # weights' gradients are there before the count begins
        saved = saved_mib(forward)
        report.note(f'saved for backward, {DTYPES[dtype]} (MiB)', saved)
        with peak_memory(device) as peak:
            forward().float().sum().backward()
        if device.type == 'cuda':
            report.measured(f'ViT-B global block {16 * side} px, forward + backward, {DTYPES[dtype]}', peak.mib, 'MiB')
            report.at_most(f'peak {DTYPES[dtype]} (MiB)', peak.mib, GLOBAL_BLOCK_MIB)
        else:  # one matrix of N x N per head would be four times as much
            matrix = HEADS * side**4 * dtype.itemsize / 2**20
            report.at_most(f'saved, of an N x N matrix a head, {DTYPES[dtype]}', saved / matrix, 4)
        report.figure = f'{peak.mib if device.type == "cuda" else saved:.0f} MiB in {DTYPES[dtype]}'


def _global_block(device: torch.device, side: int) -> tuple[Block, Tensor]:
    """A global block of ViT-B and its input."""
    torch.manual_seed(0)
    block = Block(HEADS * HEAD_WIDTH, HEADS, rel_pos_size=side).to(device)
    return block, torch.randn(1, side * side, HEADS * HEAD_WIDTH, device=device, requires_grad=True)


def time_of_global_attention(device: torch.device, report: Report) -> None:
    """Check 4: time of global attention at 1024 px: every kernel with positions, torch's without, and a full bias."""
    side, batch = (64, 4) if device.type == 'cuda' else (16, 1)
    N, width = side * side, HEADS * HEAD_WIDTH
    for dtype in [d for d in precisions(device) if d is not torch.float16]:
        q, k, v = (
            torch.randn(batch, N, HEADS, HEAD_WIDTH, device=device, dtype=dtype, requires_grad=True) for _ in 'qkv'
        )
        tables = [torch.randn(2 * side - 1, HEAD_WIDTH, device=device, dtype=dtype, requires_grad=True) for _ in 'hw']
        ways: dict[str, tuple[Kernel | None, list[SDPBackend], dict[str, Any]]] = {
            f'positions, {kernel.name}': (kernel, [], dict(grid=(side, side), rel_pos=tuple(tables)))
            for kernel in kernels_with_positions(device, dtype, side)
        }
        if device.type == 'cuda':
            ways |= {f'no positions, {b.name}': (Kernel.FUSED, [b], {}) for b in FUSED}
        else:
            ways['no positions'] = (Kernel.FUSED, [], {})
        if dtype is not torch.float32 or device.type == 'cpu':
            bias = torch.zeros(HEADS, N, N, device=device, dtype=dtype)
            ways['bias of N x N'] = (Kernel.FUSED, [], dict(bias=bias))
        for name, (kernel, backends, options) in ways.items():
            _time_way(report, f'global attention, {DTYPES[dtype]}, {name}', (q, k, v), kernel, backends, options)
        if device.type == 'cuda':
            for kernel in kernels_with_positions(device, dtype, WINDOW):
                options = dict(
                    grid=(side, side), window_size=WINDOW, rel_pos=tuple(x[: 2 * WINDOW - 1] for x in tables)
                )
                name = f'windows of {WINDOW}, {DTYPES[dtype]}, positions, {kernel.name}'
                _time_way(report, name, (q, k, v), kernel, [], options)
    report.note('shape', f'{batch} images, {side} x {side} tokens, {HEADS} heads of {width // HEADS}')
    times = {name: value for name, value in report.values.items() if 'forward + backward' in name}
    names = (name.removeprefix('global attention, ').split(', forward')[0] for name in times)
    report.figure = ', '.join(f'{name} {value:.2f} ms' for name, value in zip(names, times.values(), strict=True))


def _time_way(
    report: Report,
    name: str,
    qkv: tuple[Tensor, ...],
    kernel: Kernel | None,
    backends: list[SDPBackend],
    options: dict[str, Any],
) -> None:
    """Times one way of attention, forward, and forward + backward; a backend that cannot is noted."""

    def forward() -> Tensor:
        if not backends:
            return attend(*qkv, **options)
        with sdpa_kernel(backends):
            return attend(*qkv, **options)

    device = qkv[0].device
    weight = torch.randn_like(qkv[0])
    try:
        with forced(kernel):
            with torch.no_grad():
                report.measured(f'{name}, forward', time_ms(forward, device), 'ms')
            both = time_ms(lambda: forward().backward(weight), device)
        report.measured(f'{name}, forward + backward', both, 'ms')
    except RuntimeError as error:  # a backend that does not serve this precision
        report.note(f'{name}: not served', str(error).splitlines()[0][:200])
