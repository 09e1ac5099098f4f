"""Long: two hosts in network namespaces of their own train together; a cut link, a killed host, a wrong /etc/hosts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from running import ROOT, logged_losses, write_toy_config

NUM_ITERS = 40
PORT = '29611'
HOSTS = ('faulta', 'faultb')
ADDRESSES = ('10.99.7.1', '10.99.7.2')


def ip(*words: str) -> None:
    done = subprocess.run(['ip', *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f'ip {" ".join(words)}: {done.stderr}')


def remove() -> None:
    for host in HOSTS:
        subprocess.run(['ip', 'netns', 'del', host], capture_output=True, check=False)


@pytest.fixture(scope='module')
def network() -> Iterator[None]:
    """Two namespaces joined by one cable."""
    if shutil.which('ip') is None or sys.platform != 'linux':
        pytest.skip('no ip command here')
    remove()
    try:
        ip('link', 'add', 'faulta0', 'type', 'veth', 'peer', 'name', 'faultb0')
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            ip('netns', 'add', host)
            ip('link', 'set', f'{host}0', 'netns', host)
            ip('-n', host, 'addr', 'add', f'{address}/24', 'dev', f'{host}0')
            ip('-n', host, 'link', 'set', f'{host}0', 'up')
            ip('-n', host, 'link', 'set', 'lo', 'up')
    except OSError as error:
        remove()
        pytest.skip(f'no network namespaces allowed here: {error}')
    yield
    remove()


class Host:
    """tools/dist_train.sh on one of two hosts, with a host name and /etc/hosts of its own."""

    def __init__(self, number: int, folder: Path, config: Path, *words: str, own_address: str = '', **env: str) -> None:
        self.log = folder / f'{HOSTS[number]}.log'
        hosts = folder / f'hosts{number}'
        addresses = list(ADDRESSES)
        addresses[number] = own_address or addresses[number]
        names = [f'{address} {name}\n' for address, name in zip(addresses, HOSTS, strict=True)]
        hosts.write_text(''.join(['127.0.0.1 localhost\n', *names]))
        environment = dict(
            os.environ,
            PYTHONPATH=str(ROOT / 'tests/helpers'),
            OMP_NUM_THREADS='1',
            PYTHON=sys.executable,
            NNODES='2',
            NODE_RANK=str(number),
            MASTER_ADDR=ADDRESSES[0],
            PORT=PORT,
            **env,
        )
        command = [str(ROOT / 'tools/dist_train.sh'), str(config), '1', '--work-dir', str(folder / 'run'), *words]
        script = f'hostname {HOSTS[number]}; mount --bind {hosts} /etc/hosts; exec "$@"'
        inside = ['ip', 'netns', 'exec', HOSTS[number], 'unshare', '--mount', '--uts', 'sh', '-c', script, 'sh']
        with self.log.open('w') as output:
            self.process = subprocess.Popen([*inside, *command], env=environment, stdout=output, stderr=output)

    @property
    def output(self) -> str:
        return self.log.read_text(errors='replace')

    def wait(self, timeout_s: float) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def start(folder: Path, config: Path, *words: str, **options: Any) -> list[Host]:
    folder.mkdir(exist_ok=True)
    return [Host(number, folder, config, *words, **options) for number in (0, 1)]


def join(hosts: list[Host], timeout_s: float = 300) -> None:
    for host in hosts:
        assert host.wait(timeout_s) == 0, ''.join(one.output[-3000:] for one in hosts)


def reach(folder: Path, iteration: int, hosts: list[Host], timeout_s: float = 240) -> None:
    """Waits for a checkpoint."""
    end = time.monotonic() + timeout_s
    while not (folder / f'run/iter_{iteration}.pth').exists():
        time.sleep(0.05)
        assert time.monotonic() < end and hosts[0].process.poll() is None, ''.join(one.output[-3000:] for one in hosts)


def training_processes(host: str) -> list[int]:
    """The ids of tools/train.py in a host's namespace."""
    pids = subprocess.run(['ip', 'netns', 'pids', host], capture_output=True, text=True, check=True).stdout.split()
    commands = {int(pid): Path(f'/proc/{pid}/cmdline').read_bytes() for pid in pids}
    return [pid for pid, words in commands.items() if b'tools/train.py' in words and b'torchrun.py' not in words]


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    slow = dict(type='SignalItself', at=1, number=0, to_launcher=True)  # signal 0 is none: 0.3 s an iteration
    changes = {'train_cfg.max_iters': NUM_ITERS, 'train_cfg.val_interval': 20, 'default_hooks.checkpoint.interval': 2}
    return write_toy_config(tmp_path_factory.mktemp('two') / 'toy.py', custom_hooks=[slow], **changes)


@pytest.fixture(scope='module')
def unbroken(network: None, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('unbroken')
    join(start(folder, config))
    return folder / 'run'


def assert_equal_runs(expected: Path, got: Path) -> None:
    assert logged_losses(got) == logged_losses(expected) and len(logged_losses(got)) == NUM_ITERS
    one, two = (
        torch.load(path / f'iter_{NUM_ITERS}.pth', weights_only=False)['state_dict'] for path in (expected, got)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_link_that_is_cut_for_half_a_minute_changes_nothing(unbroken: Path, config: Path, tmp_path: Path) -> None:
    hosts = start(tmp_path, config)
    reach(tmp_path, 6, hosts)
    ip('-n', HOSTS[1], 'link', 'set', f'{HOSTS[1]}0', 'down')
    time.sleep(30)
    ip('-n', HOSTS[1], 'link', 'set', f'{HOSTS[1]}0', 'up')
    join(hosts)
    assert_equal_runs(unbroken, tmp_path / 'run')


def test_after_a_hosts_processes_are_killed_both_start_again_and_end_as_if_unbroken(
    unbroken: Path, config: Path, tmp_path: Path
) -> None:
    hosts = start(tmp_path, config, '--max-restarts', '2', '--resume')
    reach(tmp_path, 8, hosts)
    victims = training_processes(HOSTS[1])
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    join(hosts)
    assert_equal_runs(unbroken, tmp_path / 'run')


def test_after_a_whole_host_has_gone_both_are_started_by_hand_with_resume(
    unbroken: Path, config: Path, tmp_path: Path
) -> None:
    hosts = start(tmp_path, config)
    reach(tmp_path, 8, hosts)
    pids = subprocess.run(['ip', 'netns', 'pids', HOSTS[1]], capture_output=True, text=True, check=True).stdout.split()
    for pid in map(int, pids):
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    assert hosts[0].wait(180) not in (0, 85)
    hosts[1].wait(10)
    assert time.monotonic() - began < 180
    join(start(tmp_path, config, '--resume'))
    assert_equal_runs(unbroken, tmp_path / 'run')


def test_a_host_name_on_loopback_ends_both_hosts_in_time_with_the_variable_to_set(
    network: None, config: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    hosts = [
        Host(0, tmp_path, config, own_address='127.0.1.1'),
        Host(1, tmp_path, config),
    ]
    codes = [host.wait(400) for host in hosts]
    assert all(codes) and time.monotonic() - began < 400, codes
    assert 'GLOO_SOCKET_IFNAME' in hosts[0].output and '127.0.1.1' in hosts[0].output, hosts[0].output[-3000:]


def test_with_the_interface_named_a_host_name_on_loopback_does_not_matter(
    unbroken: Path, config: Path, tmp_path: Path
) -> None:
    hosts = [
        Host(number, tmp_path, config, own_address='127.0.1.1', GLOO_SOCKET_IFNAME=f'{HOSTS[number]}0')
        for number in (0, 1)
    ]
    join(hosts)
    assert_equal_runs(unbroken, tmp_path / 'run')


def test_a_run_needs_no_network(tmp_path: Path) -> None:
    if subprocess.run(['unshare', '-n', 'true'], capture_output=True, check=False).returncode:
        pytest.skip('no network namespaces allowed here')
    config = write_toy_config(tmp_path / 'toy.py')
    environment = dict(os.environ, PYTHONPATH=str(ROOT / 'tests/helpers'), OMP_NUM_THREADS='1')
    command = [
        'unshare',
        '-n',
        sys.executable,
        str(ROOT / 'tools/train.py'),
        str(config),
        '--work-dir',
        f'{tmp_path}/run',
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
