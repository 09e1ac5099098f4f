"""The noise of generation: drawn ahead without changing a number, and steps that do not wait for the device."""

from __future__ import annotations

import threading

import pytest
import torch
from tiny_addp import tiny_addp

from pretrain.generation import generate
from pretrain.generation.noise import noise_of_steps
from pretrain.generation.sampling import image_generator
from pretrain.generation.trajectory import _kernels_without_plans
from tools.benchmark.device_ops import DeviceOps

CPU = torch.device('cpu')


def generators() -> list[torch.Generator]:
    return [image_generator(0, index) for index in range(3)]


def test_noise_drawn_ahead_is_the_noise_drawn_in_time() -> None:
    sources = generators(), generators()
    in_time, early = (
        list(noise_of_steps(source, 16, 64, 4, CPU, ahead))
        for source, ahead in zip(sources, (False, True), strict=True)
    )
    assert len(in_time) == len(early) == 4
    for a, b in zip(in_time, early, strict=True):
        assert torch.equal(a.of_codes, b.of_codes) and torch.equal(a.of_tokens, b.of_tokens)
    for a, b in zip(*sources, strict=True):
        assert torch.equal(a.get_state(), b.get_state())


def test_the_next_steps_noise_is_drawn_while_this_one_is_used() -> None:
    source = generators()
    noise = noise_of_steps(source, 16, 64, 3, CPU, ahead=True)
    next(noise)
    one_step, two_steps = generators(), generators()
    list(noise_of_steps(one_step, 16, 64, 1, CPU))
    list(noise_of_steps(two_steps, 16, 64, 2, CPU))
    for thread in threading.enumerate():
        if thread.name.startswith('noise'):
            for _ in range(1000):
                if torch.equal(source[-1].get_state(), two_steps[-1].get_state()):
                    break
                thread.join(0.01)
    assert torch.equal(source[-1].get_state(), two_steps[-1].get_state())
    noise.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith('noise')]


def test_a_longer_generation_waits_for_the_device_no_more_often() -> None:
    model = tiny_addp()
    waits = []
    for steps in (2, 5):
        ops = DeviceOps([*model.parameters(), *model.buffers()])
        with ops:
            generate(model, 2, steps, generator=torch.Generator().manual_seed(0))
        waits.append(ops.waits)
    assert waits[0] == waits[1]


@pytest.mark.parametrize(('device', 'with_cudnn'), [('cuda', False), ('cpu', True)])
def test_on_cuda_attention_of_changing_length_goes_without_cudnns_plans(device: str, with_cudnn: bool) -> None:
    with _kernels_without_plans(torch.device(device)):
        assert torch.backends.cuda.cudnn_sdp_enabled() == with_cudnn
        assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
