"""Runs the Triton kernels in Triton's interpreter on a CPU and compares them with a loop over queries in float64.

    TRITON_INTERPRET=1 python tests/helpers/triton_interpreter.py 30     # so many random shapes

Prints JSON: for each shape and precision the relative error of the output and of every gradient, and the arithmetic of
the kernels' matrix products; how far ``attend`` is from its kernel for CPUs, in padded windows, eager and compiled; and
the difference that strides make.
The variable must be set before Triton is imported, hence a process of its own.
"""

from __future__ import annotations

import json
import random
import sys
import time

import torch
from triton import language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from addp_backbone.layers import attention
from addp_backbone.layers.grid import relative_positions
from addp_backbone.layers.triton_attention import relative_attention

NAMES = ('output', 'q', 'k', 'v', 'row table', 'column table')
FIXED = [
    (2, 2, (4, 4), 32),
    (1, 1, (5, 20), 80),
    (1, 1, (1, 37), 128),
]  # images, heads, grid, width
flops = 0


def patch_dot():
    """Lets the interpreter multiply bfloat16, which it otherwise takes for integers, and counts operations."""
    original = interpreter.InterpreterBuilder.create_dot

    def widen(x: TensorHandle) -> TensorHandle:
        return interpreter.interpreter_builder.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x

    def create_dot(self, a, b, *args):
        global flops
        flops += 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return original(self, widen(a), widen(b), *args)

    interpreter.InterpreterBuilder.create_dot = create_dot


def attend_by_definition(q, k, v, row_table, col_table, grid):
    """(B, N, h, D), one query after the other: what it is multiplied by is a key and the embeddings of two offsets."""
    H, W = grid
    num_tokens, D = q.shape[1], q.shape[-1]
    key_rows, key_cols = torch.arange(num_tokens) // W, torch.arange(num_tokens) % W
    out = []
    for i in range(num_tokens):
        offsets = row_table[i // W - key_rows + H - 1] + col_table[i % W - key_cols + W - 1]  # (N, D)
        keys = k * D**-0.5 + offsets[:, None]  # (B, N, h, D)
        weights = (q[:, i, None] * keys).sum(-1).softmax(1)  # (B, N, h)
        out.append((weights[..., None] * v).sum(1))
    return torch.stack(out, dim=1)


def compare(num_images, heads, grid, head_width, dtype):
    """Relative errors, by name."""
    num_tokens = grid[0] * grid[1]
    qkv = torch.randn(num_images, num_tokens, 3, heads, head_width)  # q, k and v are slices of it, as in the network
    tables = [torch.randn(2 * size - 1, head_width) / 4 for size in grid]
    weight = torch.randn(num_images, num_tokens, heads, head_width).to(dtype)
    results = []
    for precision in (dtype, torch.float64):
        leaves = [x.to(dtype).to(precision).requires_grad_() for x in (qkv, *tables)]
        q, k, v = leaves[0].unbind(2)
        if precision is dtype:
            rows, cols = (relative_positions(x, size) for x, size in zip(leaves[1:], grid, strict=True))
            out = relative_attention(q, k, v, rows, cols)
        else:
            out = attend_by_definition(q, k, v, *leaves[1:], grid)
        grads = torch.autograd.grad((out * weight.to(precision)).sum(), leaves)
        results.append([out, *grads[0].unbind(2), *grads[1:]])
    return {
        name: float(((got.double() - wanted).norm() / wanted.norm()).detach())
        for name, got, wanted in zip(NAMES, *results, strict=True)
        if float(wanted.detach().norm()) > 1e-6  # one row alone gives its only offset no gradient
    }


def compare_strides():
    """Largest relative error where q, k and v have the channels of a head far apart."""
    grid, width = (3, 4), 16
    leaves = [torch.randn(1, 12, width, 2).transpose(2, 3) for _ in 'qkv']
    leaves += [torch.randn(size, size, width) for size in grid]
    results = []
    for arrange in (torch.clone, lambda x: x.contiguous()):
        moved = [arrange(x).requires_grad_() for x in leaves]
        out = relative_attention(*moved)
        results.append([out, *torch.autograd.grad(out.square().sum(), moved)])
    return max(float((a - b).detach().norm() / b.detach().norm()) for a, b in zip(*results, strict=True))


def compare_windows():
    """Largest relative errors of ``attend`` on the Triton kernel, eager and compiled, in padded windows."""
    grid, window_size = (3, 4), 2
    shapes = [(1, 12, 1, 16)] * 3 + [(3, 1, 16), (3, 16), (3, 16)]  # q, k, v, padding, tables
    leaves = [torch.randn(shape).requires_grad_() for shape in shapes]

    def run(q, k, v, padding, rows, cols):
        return attention.attend(q, k, v, grid=grid, window_size=window_size, padding=padding, rel_pos=(rows, cols))

    def run_with(kernel, function):
        attention.choose_kernel = lambda *_: kernel
        out = function(*leaves)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    wanted = run_with(attention.Kernel.RELATIVE_BLOCKS, run)
    errors = {}
    for name, function in dict(eager=run, compiled=torch.compile(run, backend='aot_eager', fullgraph=True)).items():
        got = run_with(attention.Kernel.TRITON, function)
        errors[name] = max(float((a - b).detach().norm() / b.detach().norm()) for a, b in zip(got, wanted, strict=True))
    return errors


def random_shape(rng):
    """Images, heads, grid and head width."""
    return rng.randint(1, 2), rng.randint(1, 2), (rng.randint(1, 9), rng.randint(1, 20)), 8 * rng.randint(4, 16)


def main(num_shapes: int) -> None:
    """Prints the results as JSON."""
    global flops
    patch_dot()
    torch.manual_seed(0)
    rng = random.Random(0)
    shapes = [*FIXED, *(random_shape(rng) for _ in range(num_shapes))][:num_shapes]
    rows = []
    for index, shape in enumerate(shapes):
        dtypes = (torch.float32, torch.bfloat16) if index % 4 else (torch.float32, torch.bfloat16, torch.float16)
        for dtype in dtypes:
            flops, start = 0, time.time()
            errors = compare(*shape, dtype)
            row = dict(shape=shape, dtype=str(dtype)[6:], errors=errors, flops=flops, seconds=time.time() - start)
            rows.append(row)
    sys.stdout.write(json.dumps(dict(rows=rows, windows=compare_windows(), strides=compare_strides())))


if __name__ == '__main__':
    main(int(sys.argv[1]))
