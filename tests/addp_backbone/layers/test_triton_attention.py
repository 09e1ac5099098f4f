"""The Triton kernels in Triton's interpreter on a CPU (no test has run them on a GPU), and their arithmetic.

By default four shapes. ``TRITON_SHAPES=30 pytest tests/addp_backbone/layers/test_triton_attention.py`` runs 30, and
compiles the kernels for two generations of GPUs, which needs none.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('triton', reason='the kernels need Triton, which torch brings along on Linux')

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from addp_backbone.layers import triton_attention
from addp_backbone.layers.triton_attention import choose_tiles

NUM_SHAPES = int(os.environ.get('TRITON_SHAPES', '4'))

TOLERANCES = dict(float32=2e-5, float16=4e-3, bfloat16=3e-2)  # relative norms
ITEMSIZES = dict(float32=4, float16=2, bfloat16=2)
HELPER = Path(__file__).parents[2] / 'helpers' / 'triton_interpreter.py'


@pytest.fixture(scope='module')
def interpreted():
    command = [sys.executable, str(HELPER), str(NUM_SHAPES)]
    done = subprocess.run(
        command, env={**os.environ, 'TRITON_INTERPRET': '1'}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def kernel_flops(pairs, grid, head_width, itemsize):
    """Matrix products of forward and backward pass, from the loops of the kernels; ``pairs`` of image and head."""
    total = 0
    for backward, num_products in ((False, 2), (True, 5)):
        queries, key_cols, width = choose_tiles(grid, head_width, itemsize, backward)
        programs = pairs * math.ceil(grid[0] * grid[1] / queries)
        steps = math.ceil(grid[1] / key_cols) * grid[0]
        total += programs * steps * num_products * 2 * queries * key_cols * width
    return total


def test_values_and_all_gradients_equal_attention_by_its_definition(interpreted):
    assert {row['dtype'] for row in interpreted['rows']} == set(TOLERANCES)
    for row in interpreted['rows']:
        assert {'output', 'q', 'k', 'v', 'column table'} <= set(row['errors'])
        for name, error in row['errors'].items():
            assert error < TOLERANCES[row['dtype']], (row['shape'], row['dtype'], name)


def test_attend_pads_windows_for_the_kernel_as_for_the_others(interpreted):
    assert interpreted['windows']['eager'] < TOLERANCES['float32']


def test_the_kernel_is_part_of_one_compiled_graph(interpreted):
    assert interpreted['windows']['compiled'] < TOLERANCES['float32']


def test_the_kernels_loops_have_the_arithmetic_of_the_formula(interpreted):
    for row in interpreted['rows']:
        num_images, heads, grid, head_width = row['shape']
        assert row['flops'] == kernel_flops(num_images * heads, grid, head_width, ITEMSIZES[row['dtype']])


@pytest.mark.parametrize(('heads', 'head_width'), [(12, 64), (16, 64)])  # ViT-B and ViT-L
def test_relative_positions_cost_a_global_block_at_1024_px_less_than_a_tenth_more(heads, head_width):
    grid, num_tokens = (64, 64), 64 * 64
    without = 7 * 2 * heads * num_tokens**2 * head_width  # two products forward, five backward
    terms = 3 * 2 * heads * num_tokens * sum(grid) * head_width  # forward, and backward for queries and tables
    assert without < kernel_flops(heads, grid, head_width, itemsize=2) + terms < 1.1 * without


@pytest.mark.parametrize(
    ('grid', 'tiles'),
    [
        ((64, 64), (128, 64, 64)),
        ((14, 14), (128, 16, 64)),
        ((32, 40), (128, 16, 64)),
        ((5, 100), (128, 64, 64)),
        ((2, 3), (16, 16, 64)),
    ],
)
def test_tiles_are_as_wide_as_little_padding_allows(grid, tiles):
    assert choose_tiles(grid, 64, itemsize=2, backward=False) == tiles


@pytest.mark.skipif(NUM_SHAPES < 30, reason='takes a minute: set TRITON_SHAPES=30')
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('dtype', ['bf16', 'fp32'])
@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize('head_width', [64, 128])
def test_the_kernels_compile_for_gpus_within_99_kib_of_shared_memory(capability, dtype, backward, head_width):
    kernel = triton_attention._backward_kernel if backward else triton_attention._forward_kernel
    tiles = choose_tiles((64, 64), head_width, 4 if dtype == 'fp32' else 2, backward)
    precision = 'ieee' if dtype == 'fp32' else 'tf32'
    constants = dict(D=head_width, QUERIES=tiles[0], KEY_COLS=tiles[1], WIDTH=tiles[2], PRECISION=precision)
    signature = {}
    for name in kernel.arg_names:
        if name.endswith('_ptr'):
            signature[name] = '*fp32' if name in ('log_sum_ptr', 'grad_k_ptr', 'grad_v_ptr') else f'*{dtype}'
        else:
            signature[name] = 'constexpr' if name in constants else 'fp32' if name == 'scale' else 'i32'
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = dict(num_warps=triton_attention._NUM_WARPS, num_stages=1 if backward else 2)
    compiled = triton_attention.triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    assert 'cubin' in compiled.asm and compiled.metadata.shared <= 99 * 1024
