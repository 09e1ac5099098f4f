"""The Triton kernels in Triton's interpreter on a CPU (tools/gpu_check.py runs them on a GPU), and their arithmetic.

By default three shapes. ``TRITON_SHAPES=30 pytest tests/addp_backbone/layers/test_triton_attention.py`` runs 30, and
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

NUM_SHAPES = int(os.environ.get('TRITON_SHAPES', '3'))

TOLERANCES = dict(float32=2e-5, float16=4e-3, bfloat16=3e-2)  # relative norms
ITEMSIZES = dict(float32=4, float16=2, bfloat16=2)
KERNELS = dict(
    _forward_kernel='forward',
    _query_gradients_kernel='queries',
    _key_gradients_kernel='keys',
    _terms_kernel='',
    _term_query_gradients_kernel='',
    _term_table_gradients_kernel='',
)
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
    H, W = grid
    total = 0
    for part, num_products in (('forward', 2), ('queries', 3), ('keys', 4)):
        tiles = choose_tiles(grid, head_width, itemsize, part)
        key_tiles = math.ceil(H / tiles.key_rows) * math.ceil(W / tiles.key_cols)
        query_tiles = math.ceil(H * W / tiles.queries)
        size = tiles.queries * tiles.key_rows * tiles.key_cols * tiles.head_width
        total += pairs * query_tiles * key_tiles * num_products * 2 * size
    width = choose_tiles(grid, head_width, itemsize, 'forward').head_width
    for lines, run in ((H, W), (W, H)):
        keys, runs = (math.ceil(n / tile) * tile for n, tile in ((lines, term_tile(lines)), (run, term_tile(run))))
        total += 4 * pairs * lines * 2 * keys * runs * width  # forward, again in the backward pass, queries, tables
    return total


def term_tile(size):
    """Width of a tile of the terms' kernels: a power of 2 from 16 to 64."""
    return min(64, max(16, 2 ** math.ceil(math.log2(size))))


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


def test_strides_of_queries_keys_and_values_change_nothing(interpreted):
    assert interpreted['strides'] < TOLERANCES['float32']


def test_the_kernels_loops_have_the_arithmetic_of_the_formula(interpreted):
    for row in interpreted['rows']:
        num_images, heads, grid, head_width = row['shape']
        assert row['flops'] == kernel_flops(num_images * heads, grid, head_width, ITEMSIZES[row['dtype']])


@pytest.mark.parametrize(('heads', 'head_width'), [(12, 64), (16, 64)])  # ViT-B and ViT-L
def test_a_global_block_at_1024_px_computes_two_products_twice_and_little_for_positions(heads, head_width):
    grid, num_tokens = (64, 64), 64 * 64
    products = 9 * 2 * heads * num_tokens**2 * head_width  # two forward, three for queries, four for keys and values
    assert products < kernel_flops(heads, grid, head_width, itemsize=2) < 1.02 * products


@pytest.mark.parametrize(
    ('grid', 'part', 'tiles'),
    [
        ((64, 64), 'forward', (64, 1, 64)),
        ((14, 14), 'forward', (64, 1, 16)),
        ((32, 40), 'forward', (64, 1, 16)),
        ((5, 100), 'forward', (64, 1, 64)),
        ((2, 3), 'forward', (16, 1, 16)),
        ((64, 64), 'queries', (64, 1, 32)),
        ((64, 64), 'keys', (32, 1, 64)),
        ((14, 14), 'keys', (64, 4, 16)),
    ],
)
def test_tiles_are_as_wide_as_little_padding_allows(grid, part, tiles):
    assert choose_tiles(grid, 64, itemsize=2, part=part)[:3] == tiles


@pytest.mark.skipif(NUM_SHAPES < 30, reason='takes minutes: set TRITON_SHAPES=30')
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize('dtype', ['bf16', 'fp32'])
@pytest.mark.parametrize('kernel', sorted(KERNELS))
@pytest.mark.parametrize('head_width', [64, 128])
@pytest.mark.parametrize('side', [14, 64])
def test_the_kernels_compile_for_gpus_within_99_kib_of_shared_memory(capability, dtype, kernel, head_width, side):
    function, part = getattr(triton_attention, kernel), KERNELS[kernel]
    tiles = choose_tiles((side, side), head_width, 4 if dtype == 'fp32' else 2, part or 'forward')
    constants = dict(D=head_width, WIDTH=tiles.head_width, PRECISION='ieee' if dtype == 'fp32' else 'tf32')
    constants.update(QUERIES=tiles.queries, KEY_ROWS=tiles.key_rows, KEY_COLS=tiles.key_cols, RUN=64, KEYS=64)
    signature = {}
    for name in function.arg_names:
        if name.endswith('_ptr'):
            signature[name] = '*fp32' if name in ('log_sum_ptr', 'mean_ptr', 'grad_table_ptr') else f'*{dtype}'
        else:
            signature[name] = 'constexpr' if name in constants else 'fp32' if name == 'scale' else 'i32'
    constants = {name: value for name, value in constants.items() if name in signature}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    options = dict(num_warps=4, num_stages=tiles.num_stages if part else 2)
    compiled = triton_attention.triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    assert 'cubin' in compiled.asm and compiled.metadata.shared <= 99 * 1024
