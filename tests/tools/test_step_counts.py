"""What is counted of a training iteration: only what would lie on the GPU, and every kind of wait."""

from __future__ import annotations

import pytest
import torch

from tools.benchmark.device_ops import DeviceOps
from tools.benchmark.step_counts import addp_step, markdown


def test_only_operations_on_the_models_tensors_and_what_follows_from_them_count() -> None:
    weight, other = torch.ones(4), torch.ones(4)
    ops = DeviceOps([weight])
    with ops:
        other = (other * 2).cumsum(0)
        assert ops.num_ops == 0 and other.sum().item() == 20 and ops.num_waits == 0
        result = weight + other
        assert ops.num_ops == 1 and ops.holds(result) and ops.holds(result[1:])
    assert not ops.holds(other)


@pytest.mark.parametrize(
    'read',
    [
        torch.Tensor.item,
        torch.Tensor.tolist,
        torch.Tensor.cpu,
        torch.Tensor.nonzero,
        lambda x: bool(x.sum()),
        lambda x: x[x > 0],
        lambda x: torch.zeros(1).to(x.device),
        lambda x: torch.tensor([1.0], device=x.device),
    ],
    ids=['item', 'tolist', 'cpu', 'nonzero', 'bool', 'mask', 'copy in', 'made from a list'],
)
def test_every_way_to_wait_counts_once(read) -> None:
    value = torch.ones(1)
    ops = DeviceOps([value])
    with ops:
        read(value)
    assert ops.num_waits == 1


def test_what_has_been_copied_to_the_cpu_is_the_cpus_and_copies_that_do_not_block_are_no_waits() -> None:
    value = torch.ones(3)
    ops = DeviceOps([value])
    with ops:
        host = value.cpu()
        assert host.sum().item() == 3 and ops.num_waits == 1
        copy = host.to(value.device, non_blocking=True)
    assert ops.num_waits == 1 and ops.num_copies == 1 and ops.holds(copy) and not ops.holds(host)


def test_an_iteration_of_addp_waits_for_the_device_twice_in_ten() -> None:
    row = addp_step(batch_size=2)
    assert (
        row.waits == 0.2 and row.copies == 4
    )  # the log's read and the loss watch's; images, two masks, dropped tokens
    assert f'| {row.name} | {row.ops:g} | 4 | 0.2 |' in markdown([row], 0.01)
