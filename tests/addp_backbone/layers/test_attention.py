"""``attend``: which kernel serves, that it says so once, and that all kernels agree with masked attention."""

import contextlib

import pytest
import torch
from mmengine.logging import MMLogger
from torch.nn import functional as F

from addp_backbone.layers import attention as module
from addp_backbone.layers.attention import Kernel, attend, choose_kernel

GRID, WINDOW = (5, 7), 3


def make(dtype=torch.float64):
    torch.manual_seed(0)
    tensors = [torch.randn(2, 35, 2, 8, dtype=dtype) for _ in range(3)]
    return tensors, torch.randn(3, 2, 8, dtype=dtype), tuple(torch.randn(5, 8, dtype=dtype) for _ in range(2))


def attend_in_one_window(q, k, v, padding, rel_pos, rows, cols):
    """The output of the tokens of a window by its definition, from logits of all pairs; (B, h, queries, D)."""
    index = [row * GRID[1] + col if row < GRID[0] and col < GRID[1] else None for row in rows for col in cols]
    q, k, v = (
        torch.stack([fill.expand(2, -1, -1) if i is None else x[:, i] for i in index], dim=2)
        for x, fill in zip((q, k, v), padding, strict=True)
    )
    logits = q @ k.mT * 8**-0.5
    for i in range(len(index)):
        for j in range(len(index)):
            row, col = i // len(cols) - j // len(cols), i % len(cols) - j % len(cols)
            if rel_pos:
                offsets = rel_pos[0][row + 2] + rel_pos[1][col + 2]  # tables of -2 .. 2
                logits[..., i, j] += q[:, :, i] @ offsets
    return logits.softmax(-1) @ v, index


def force(monkeypatch, kernel):
    monkeypatch.setattr(module, 'choose_kernel', lambda *_: kernel)
    monkeypatch.setattr(module, 'sdpa_kernel', contextlib.nullcontext)  # there is no cuDNN on a CPU


@pytest.mark.parametrize('relative', [False, True])
@pytest.mark.parametrize('kernel', [None, Kernel.FUSED, Kernel.EXPLICIT, Kernel.CUDNN])
def test_windows_equal_the_definition_on_a_grid_that_they_do_not_divide(relative, kernel, monkeypatch):
    if kernel:
        force(monkeypatch, kernel)
    tensors, padding, rel_pos = make()
    got = attend(*tensors, grid=GRID, window_size=WINDOW, padding=padding, rel_pos=rel_pos if relative else None)
    assert got.shape == (2, 35, 2, 8)
    for top, left in [(0, 0), (0, 6), (3, 3), (3, 6)]:
        rows, cols = range(top, top + WINDOW), range(left, left + WINDOW)
        wanted, index = attend_in_one_window(*tensors, padding, rel_pos if relative else None, rows, cols)
        for position, token in enumerate(index):
            if token is not None:
                torch.testing.assert_close(got[:, token], wanted[:, :, position])


def test_padding_tokens_are_zeros_if_not_given():
    tensors, _, rel_pos = make()
    for options in (dict(), dict(rel_pos=rel_pos)):
        got = attend(*tensors, grid=GRID, window_size=WINDOW, **options)
        wanted = attend(*tensors, grid=GRID, window_size=WINDOW, padding=torch.zeros(3, 2, 8), **options)
        assert torch.equal(got, wanted)


def test_without_windows_and_positions_it_is_torchs_attention():
    tensors, _, _ = make()
    wanted = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in tensors)).transpose(1, 2)
    torch.testing.assert_close(attend(*tensors), wanted)


@pytest.mark.parametrize(
    ('kernel', 'key_width', 'width'), [('FUSED', 192, 192), ('CUDNN', 192, 128), ('FUSED', 264, 8)]
)
def test_values_are_as_wide_as_the_fused_kernels_want_them(kernel, key_width, width):
    assert module._value_width(Kernel[kernel], 8, key_width) == width


def test_more_columns_than_flash_kernels_take_change_nothing(monkeypatch):
    torch.manual_seed(0)
    tensors = [torch.randn(1, 260, 2, 8) for _ in range(3)]
    options = dict(grid=(1, 260), rel_pos=(torch.randn(1, 8), torch.randn(519, 8)))
    wanted = attend(*tensors, **options)
    force(monkeypatch, Kernel.FUSED)
    torch.testing.assert_close(attend(*tensors, **options), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('device', 'dtype', 'relative', 'dropout', 'kernel'),
    [
        ('cpu', torch.float32, True, False, Kernel.RELATIVE_BLOCKS),
        ('cpu', torch.bfloat16, True, False, Kernel.RELATIVE_BLOCKS),
        ('cpu', torch.bfloat16, False, False, Kernel.BLOCKS),
        ('cpu', torch.float16, False, False, Kernel.BLOCKS),
        ('cpu', torch.float32, False, False, Kernel.FUSED),
        ('cpu', torch.float32, True, True, Kernel.EXPLICIT),
        ('cpu', torch.bfloat16, False, True, Kernel.EXPLICIT),
        ('cuda', torch.bfloat16, False, False, Kernel.FUSED),
        ('cuda', torch.bfloat16, True, True, Kernel.FUSED),
        ('mps', torch.float32, True, False, Kernel.FUSED),
    ],
)
def test_device_precision_and_task_decide_which_kernel_serves(device, dtype, relative, dropout, kernel):
    assert choose_kernel(torch.device(device), dtype, 64, (14, 14) if relative else None, dropout) is kernel


def test_a_bias_for_every_pair_is_left_to_torchs_attention_in_16_bits_too():
    assert choose_kernel(torch.device('cpu'), torch.bfloat16, 64, None, dropout=False, biased=True) is Kernel.FUSED


@pytest.mark.parametrize('serving', [[Kernel.TRITON, Kernel.CUDNN], [Kernel.CUDNN], []])
def test_cuda_with_relative_positions_has_the_first_kernel_that_passes_its_trial(serving, monkeypatch):
    monkeypatch.setattr(module, '_serves', lambda kernel, *_: kernel in serving)
    arguments = torch.device('cuda'), torch.bfloat16, 64, (64, 64)
    assert choose_kernel(*arguments, dropout=False) is (serving or [Kernel.FUSED])[0]
    assert choose_kernel(*arguments, dropout=True) is Kernel.FUSED
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    repeatable = Kernel.TRITON if Kernel.TRITON in serving else Kernel.FUSED  # cuDNN's gradients vary in the last bits
    assert choose_kernel(*arguments, dropout=False) is repeatable


def test_exact_float32_on_cuda_is_left_to_torchs_attention_which_was_quicker(monkeypatch):
    monkeypatch.setattr(module, '_passes_trial', lambda *_: True)
    serving = [module._serves(Kernel.TRITON, torch.device('cuda'), dtype, 64) for dtype in (torch.float32, torch.half)]
    assert serving == [False, True]
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = 'tf32'
    try:
        assert module._serves(Kernel.TRITON, torch.device('cuda'), torch.float32, 64)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize('capability, head_width', [((7, 5), 64), ((9, 0), 160), ((9, 0), 64)])
def test_a_kernel_that_cannot_be_had_or_fails_its_trial_is_done_without(capability, head_width, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    monkeypatch.setattr(module, 'find_fault', lambda *_: 'no compiler')
    module._passes_trial.cache_clear()
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        assert not module._serves(Kernel.TRITON, torch.device('cuda', 0), torch.bfloat16, head_width)
    finally:
        logger.removeHandler(caplog.handler)
        module._passes_trial.cache_clear()
    tried = capability == (9, 0) and head_width == 64
    wanted = (
        'attention on cuda:0 in bfloat16 does without the Triton kernel, relative positions added inside: no compiler'
    )
    assert [record.getMessage() for record in caplog.records] == [wanted] * tried


def test_the_trial_is_a_constant_of_a_compiled_graph():
    def run(x):
        return x + 1 if module._serves(Kernel.TRITON, x.device, x.dtype, 64) else x - 1

    assert torch.compile(run, backend='eager', fullgraph=True)(torch.zeros(2)).tolist() == [-1, -1]


def test_the_choice_is_logged_once(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    module._log_once.cache_clear()
    try:
        for _ in range(2):
            attend(*make(torch.float32)[0])
    finally:
        logger.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.records] == ["attention on cpu in float32: torch's fused attention"]


@pytest.mark.parametrize(
    ('options', 'message'),
    [(dict(window_size=2), r'need the grid: pass grid='), (dict(grid=(5, 6)), r'grid \(5, 6\) has 30 .* 35 queries')],
)
def test_a_grid_that_is_missing_or_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attend(*make()[0], **options)
