"""No silent hang: timeouts that are set, and messages that name the host, the process or the setting to change."""

from __future__ import annotations

import socket
import time

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from torch.utils.data import DataLoader

from addp_backbone.runtime import distributed, watchdog
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.distributed import check_interface, join
from addp_backbone.runtime.launch import set_timeouts
from addp_backbone.runtime.loaders import check_shared_memory, needed_bytes
from addp_backbone.runtime.watchdog import Watch


@pytest.fixture
def two_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in dict(RANK='1', WORLD_SIZE='2', LOCAL_WORLD_SIZE='1', MASTER_ADDR='127.0.0.1').items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv('GLOO_SOCKET_IFNAME', raising=False)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (address, 0)) for address in addresses]
    monkeypatch.setattr(distributed.socket, 'getaddrinfo', lambda host, port: answers)
    monkeypatch.setattr(distributed.socket, 'gethostname', lambda: 'node7')


def test_a_host_name_on_loopback_is_refused_with_the_variable_to_set(
    two_hosts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, '127.0.1.1', '::1')
    with pytest.raises(
        LaunchError, match=r'node7, stands for 127\.0\.1\.1, ::1.*GLOO_SOCKET_IFNAME.*NCCL_SOCKET_IFNAME'
    ):
        check_interface()
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'eth0')
    check_interface()


def test_a_host_name_that_others_reach_and_a_run_on_one_host_are_fine(
    two_hosts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, '127.0.1.1', '10.0.0.7')
    check_interface()
    resolve_to(monkeypatch, '127.0.1.1')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    check_interface()


@pytest.mark.parametrize('rank', ['0', '1'])
def test_a_process_whose_peers_do_not_come_ends_in_time_and_says_what_to_look_at(
    rank: str, two_hosts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(('127.0.0.1', 0)) as server:
        monkeypatch.setenv('MASTER_PORT', str(server.getsockname()[1]))  # nobody listens there any more
    monkeypatch.setenv('RANK', rank)
    began = time.monotonic()
    with pytest.raises(LaunchError, match=rf'process {rank} of 2, on host .* within 2 s.*MASTER_ADDR and PORT.*IFNAME'):
        join(2, 60)
    assert time.monotonic() - began < 30 and not dist.is_initialized()


def test_timeouts_are_set_where_a_config_leaves_them_open() -> None:
    cfg = Config(dict(train_dataloader=dict(num_workers=2), val_dataloader=dict(num_workers=0), test_dataloader=None))
    assert set_timeouts(cfg) == cfg.env_cfg.dist_cfg.timeout == 1800
    assert cfg.train_dataloader.timeout == 600 and 'timeout' not in cfg.val_dataloader
    cfg = Config(dict(train_dataloader=dict(num_workers=2, timeout=5), env_cfg=dict(dist_cfg=dict(timeout=60))))
    assert set_timeouts(cfg) == 60 and cfg.train_dataloader.timeout == 5
    cfg.train_dataloader.num_workers = 0  # of a run's own config, in which the timeout stands
    set_timeouts(cfg)
    next(iter(DataLoader(range(2), **cfg.train_dataloader)))


class Sleeper:
    """A data set whose samples never come."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(60)
        raise AssertionError


def test_a_worker_that_hangs_is_an_error_in_the_main_process() -> None:
    with pytest.raises(RuntimeError, match=r'timed out after 0\.5 seconds'):
        next(iter(DataLoader(Sleeper(), num_workers=1, timeout=0.5)))


def test_workers_that_need_more_shared_memory_than_there_is_are_refused_with_both_figures() -> None:
    loader = DataLoader([torch.zeros(3, 10, 10)] * 4, batch_size=2, num_workers=3)
    assert needed_bytes(loader) == 3 * 10 * 10 * 4 * 2 * 3 * 2  # float32, batch, workers, prefetched batches
    with pytest.raises(LaunchError, match=r'3 data workers need about 9 MB.*has 1 MB free.*--shm-size.*num_workers=0'):
        check_shared_memory(9_000_000, 1_000_000, 3)
    check_shared_memory(1_000_000, 9_000_000, 3)


def test_looking_at_a_sample_changes_no_random_number_and_a_bad_one_is_no_matter() -> None:
    class Draws(list):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(2)

    torch.manual_seed(0)
    needed_bytes(DataLoader(Draws([0, 0]), num_workers=1))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert needed_bytes(DataLoader([0, 0][:0], num_workers=1, sampler=[])) == 0


def test_who_is_late_is_named_with_host_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(watchdog, '_tell', said.append)
    store = dist.HashStore()
    watches = [Watch(store, rank, 3, patience_s=0.4) for rank in range(3)]
    for watch, step in zip(watches, (7, 7, 6), strict=True):
        watch.step = step
        watch.start()
    time.sleep(1.5)
    for watch in watches:
        watch.stopped.set()
        watch.join()
    assert said and all('iteration 7 has taken' in line and 'rank 2 on host' in line for line in said)
    assert all(socket.gethostname() in line and 'rank 1' not in line for line in said)


def test_a_silent_process_is_named_even_if_it_had_come_as_far(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(watchdog, '_tell', said.append)
    store = dist.HashStore()
    stopped, alive = (Watch(store, rank, 2, patience_s=0.4) for rank in range(2))
    stopped.step = alive.step = 3
    stopped._report(1)  # and never again
    alive.start()
    time.sleep(1.5)
    alive.stopped.set()
    alive.join()
    assert said and 'rank 0 on host' in said[0] and 'in iteration 3, silent for' in said[0]


def test_processes_that_are_on_time_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(watchdog, '_tell', said.append)
    store = dist.HashStore()
    watches = [Watch(store, rank, 2, patience_s=1.0) for rank in range(2)]
    for watch in watches:
        watch.start()
    for _ in range(8):
        time.sleep(0.2)
        for watch in watches:
            watch.step, watch.began = watch.step + 1, time.monotonic()
    for watch in watches:
        watch.stopped.set()
        watch.join()
    assert said == []
