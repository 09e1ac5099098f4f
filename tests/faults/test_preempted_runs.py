"""Long: real runs of several processes that are signalled, killed and stopped; ``make faults`` runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from running import ROOT, logged_losses, write_toy_config

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='processes that end with their parent')


def start(config: Path, work_dir: Path, *words: str) -> subprocess.Popen:
    environment = dict(os.environ, PYTHONPATH=str(ROOT / 'tests/helpers'), OMP_NUM_THREADS='1', PYTHON=sys.executable)
    command = [str(ROOT / 'tools/dist_train.sh'), str(config), '2', '--work-dir', str(work_dir), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(config: Path, work_dir: Path, *words: str, code: int = 0) -> str:
    process = start(config, work_dir, *words)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == code, output[-4000:]
    return output


def config_of(folder: Path, name: str, *hooks: dict[str, Any], **changes: Any) -> Path:
    return write_toy_config(folder / name, custom_hooks=list(hooks), **changes)


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('unbroken')
    train(config_of(folder, 'toy.py'), folder / 'run')
    return folder / 'run'


def assert_equal_runs(expected: Path, got: Path) -> None:
    assert logged_losses(got) == logged_losses(expected)
    one, two = (torch.load(path / 'iter_6.pth', weights_only=False)['state_dict'] for path in (expected, got))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ('rank', 'number', 'to_launcher'),
    [(1, signal.SIGUSR1, False), (0, signal.SIGTERM, False), (0, signal.SIGTERM, True), (0, signal.SIGINT, True)],
)
def test_a_signal_to_one_process_or_to_the_launcher_saves_all_and_resumes_exactly(
    rank: int, number: signal.Signals, to_launcher: bool, unbroken: Path, tmp_path: Path
) -> None:
    stop = dict(type='SignalItself', at=3, rank=rank, number=int(number), to_launcher=to_launcher)
    output = train(config_of(tmp_path, 'stop.py', stop), tmp_path / 'run', code=85)
    assert output.count('saving and ending after this iteration') == (2 if to_launcher else 1)
    train(config_of(tmp_path, 'toy.py'), tmp_path / 'run', '--resume')
    assert_equal_runs(unbroken, tmp_path / 'run')


def test_within_a_gradient_accumulation_the_optimizers_step_is_waited_for(tmp_path: Path) -> None:
    changes = {'optim_wrapper.accumulative_counts': 2}
    stop = dict(type='SignalItself', at=3, rank=1, number=int(signal.SIGTERM))
    train(config_of(tmp_path, 'stop.py', stop, **changes), tmp_path / 'run', code=85)
    assert (tmp_path / 'run/last_checkpoint').read_text().endswith('iter_4.pth')


def test_a_killed_process_is_restarted_and_the_run_ends_as_if_unbroken(unbroken: Path, tmp_path: Path) -> None:
    kill_once = dict(type='KillOnce', at=4, rank=1, flag=str(tmp_path / 'killed'))
    train(config_of(tmp_path, 'kill.py', kill_once), tmp_path / 'run', '--max-restarts', '1')
    assert (tmp_path / 'killed').exists()
    assert_equal_runs(unbroken, tmp_path / 'run')


def test_a_stopped_process_is_named_and_the_run_ends_at_the_timeout(tmp_path: Path) -> None:
    stop = dict(type='SignalItself', at=2, rank=1, number=int(signal.SIGSTOP))
    watch = dict(type='WatchProcesses', patience_s=3)
    config = config_of(tmp_path, 'toy.py', stop, watch, env_cfg=dict(dist_cfg=dict(timeout=15)))
    began = time.monotonic()
    process = start(config, tmp_path / 'run')
    output = process.communicate(timeout=240)[0]
    assert process.returncode and time.monotonic() - began < 200
    assert 'late: rank 1 on host' in output, output[-3000:]


def test_a_second_training_in_the_folder_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    slow = dict(type='SignalItself', at=1, number=0, to_launcher=True)  # signal 0 is none: only slow
    first = start(config_of(tmp_path, 'toy.py', slow, **{'train_cfg.max_iters': 10_000}), tmp_path / 'run')
    while not (tmp_path / 'run/.owner.json').exists():
        time.sleep(0.05)
        assert first.poll() is None
    output = train(config_of(tmp_path, 'other.py'), tmp_path / 'run', code=1)
    assert 'is in use by another training, process' in output
    first.send_signal(signal.SIGTERM)
    assert first.communicate(timeout=240) and first.returncode == 85


def test_a_hundredth_of_the_usual_shared_memory_is_refused_before_training(tmp_path: Path) -> None:
    config = config_of(tmp_path, 'toy.py', **{'train_dataloader.num_workers': 2, 'train_dataloader.batch_size': 5000})
    script = (
        f'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec {sys.executable} {ROOT}/tools/train.py {config} '
        f'--work-dir {tmp_path}/run'
    )
    if subprocess.run(['unshare', '-m', 'true'], capture_output=True, check=False).returncode:
        pytest.skip('no private mounts allowed here')
    environment = dict(os.environ, PYTHONPATH=str(ROOT / 'tests/helpers'), OMP_NUM_THREADS='1')
    done = subprocess.run(
        ['unshare', '-m', 'sh', '-c', script], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 1 and 'of shared memory for the batches' in done.stderr


def test_bad_samples_above_the_limit_of_one_process_end_all_with_a_checkpoint_that_resumes_exactly(
    tmp_path: Path,
) -> None:
    damaged = {'train_dataloader.dataset.type': 'DamagedToyDataset', 'default_hooks.checkpoint.interval': 100}
    configs = {
        name: config_of(tmp_path, f'{name}.py', **damaged, bad_samples=dict(max_count=count, max_share=1.0))
        for name, count in (('strict', 0), ('lenient', 5))
    }
    output = train(configs['strict'], tmp_path / 'run', code=1)
    assert 'training samples cannot be used' in output and 'saved iter_' in output
    assert len(list((tmp_path / 'run').glob('iter_*.pth'))) == 1
    train(configs['lenient'], tmp_path / 'run', '--resume')
    train(configs['lenient'], tmp_path / 'unbroken')
    assert_equal_runs(tmp_path / 'unbroken', tmp_path / 'run')
    assert {path.name for path in (tmp_path / 'unbroken').glob('bad_samples_*')} <= {
        'bad_samples_rank0.jsonl',
        'bad_samples_rank1.jsonl',
    }
