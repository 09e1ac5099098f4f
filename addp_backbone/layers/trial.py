"""A trial of an attention kernel on the device at hand, before it serves: does it run there, and is it right?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCES = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # float32 allows for TF32 products
NAMES = (
    'output',
    'gradient of q',
    'gradient of k',
    'gradient of v',
    'gradient of row table',
    'gradient of column table',
)

Attend = Callable[[Tensor, Tensor, Tensor, tuple[int, int], tuple[Tensor, Tensor]], Tensor]


def find_fault(
    attend: Attend, reference: Attend, grid: tuple[int, int], head_width: int, device: torch.device, dtype: torch.dtype
) -> str:
    """Compares two ways of attention with relative positions, output and gradients, on a small random input.

    Args:
        attend: The kernel on trial. Called with q, k, v (1, N, 2, D), the grid and the tables (2 * S - 1, D) of rows
            and columns; returns (1, N, 2, D).
        reference: What it is compared with, called in the same way.
        grid: (H, W) of the tokens.
        head_width: D, the channels of a head.
        device: Where to compute.
        dtype: float32, float16 or bfloat16.

    Returns:
        What is wrong in one line, such as the error that the kernel raised; empty if nothing is.
    """
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(1, grid[0] * grid[1], 2, head_width)] * 4 + [(2 * size - 1, head_width) for size in grid]
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        *inputs, weight = (
            torch.randn(shape, generator=generator, device=device).to(dtype)
            for shape in shapes[:3] + shapes[4:] + shapes[:1]
        )
        try:
            results = []
            for function in (reference, attend):
                q, k, v, rows, cols = leaves = [x.clone().requires_grad_() for x in inputs]
                out = function(q, k, v, grid, (rows, cols))
                results.append([out.detach(), *torch.autograd.grad(out, leaves, weight)])
        except Exception as error:  # whatever compilers and drivers raise: the kernel cannot serve here
            return f'{type(error).__name__}: {next(iter(str(error).splitlines()), "")}'
        for name, wanted, got in zip(NAMES, *results, strict=True):
            difference = float((got.float() - wanted.float()).norm() / wanted.float().norm())
            if not difference <= TOLERANCES[dtype]:  # nor if it is nan
                return f'{name} differs by {difference:.1e} from the reference'
    return ''
