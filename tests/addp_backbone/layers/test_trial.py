"""The trial of a kernel: right ones pass, and what is wrong with others is told."""

import functools

import pytest
import torch

from addp_backbone.layers.attention import Kernel, _try
from addp_backbone.layers.trial import find_fault

REFERENCE = functools.partial(_try, Kernel.FUSED)


def judge(attend):
    with torch.inference_mode():  # where a first image may be predicted
        return find_fault(attend, REFERENCE, (3, 5), 16, torch.device('cpu'), torch.float32)


def test_a_kernel_that_agrees_has_no_fault():
    assert judge(functools.partial(_try, Kernel.EXPLICIT)) == ''


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (lambda q, k, v, *args: REFERENCE(q, k, v * 1.1, *args), 'output differs by 1.0e-01 from the reference'),
        (lambda q, k, v, *args: REFERENCE(q, k, v, *args) * torch.nan, 'output differs by nan'),
        (lambda q, k, *args: REFERENCE(q, k + 0.5 * (k - k.detach()), *args), 'gradient of k differs by 5.0e-01'),
        (lambda *args: (_ for _ in ()).throw(OSError('no C compiler\nat all')), 'OSError: no C compiler'),
    ],
)
def test_a_kernel_that_is_wrong_or_fails_has_its_fault_named(wrong, message):
    assert judge(wrong).startswith(message)


def test_the_global_random_state_stays_as_it_is():
    state = torch.get_rng_state()
    judge(REFERENCE)
    assert torch.equal(torch.get_rng_state(), state)
