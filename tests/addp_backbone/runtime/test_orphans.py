"""addp_backbone/runtime/processes.py: a killed run takes its processes with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RUN = """
import os, time
import numpy as np
from addp_backbone.runtime.runner import StageRunner
class Numbers:
    def __len__(self): return 64
    def __getitem__(self, index):
        return np.zeros(1 << 20, np.uint8)  # more than a pipe holds: the worker waits until it is read
loader = StageRunner.build_dataloader(dict(
    dataset=Numbers(), batch_size=1, num_workers=1, sampler=dict(type='DefaultSampler', shuffle=False)), seed=0)
batches = iter(loader)
next(batches)
print(batches._workers[0].pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return (Path('/proc') / str(pid) / 'stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux ends processes with their parent')
def test_a_data_worker_that_waits_to_hand_over_its_batch_ends_with_a_killed_run() -> None:
    run = subprocess.Popen(
        [sys.executable, '-c', RUN],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    try:
        assert is_alive(worker)
        run.kill()
        run.wait()
        deadline = time.monotonic() + 5
        while is_alive(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(worker)
    finally:
        if is_alive(worker):
            os.kill(worker, signal.SIGKILL)
        run.stdout.close()


POOL = """
import sys, pathlib
from addp_backbone.datasets.shapes.writer import ShapeSettings, write_shapes
write_shapes(pathlib.Path(sys.argv[1]), ShapeSettings(256, 256, train_scenes=5000), num_workers=2)
"""


def children_of(pid: int) -> list[int]:
    return [int(child) for child in (Path('/proc') / str(pid) / 'task' / str(pid) / 'children').read_text().split()]


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux ends processes with their parent')
def test_the_processes_that_draw_shapes_end_with_a_killed_run(tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, '-c', POOL, str(tmp_path / 'shapes')], cwd=ROOT)
    workers: list[int] = []
    deadline = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.02)
        workers = children_of(run.pid)
    try:
        assert len(workers) == 2
        while not (tmp_path / 'shapes/.records').exists() and time.monotonic() < deadline:  # they are at work
            time.sleep(0.02)
        run.kill()
        run.wait()
        deadline = time.monotonic() + 5
        while any(map(is_alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(is_alive, workers))
    finally:
        for worker in filter(is_alive, workers):
            os.kill(worker, signal.SIGKILL)


ENDS_WITH_A_LIVE_ITERATOR = """
import multiprocessing, sys
from torch.utils.data import DataLoader
from addp_backbone.runtime.processes import WorkerInit

def run():
    loader = DataLoader(range(8), num_workers=2, persistent_workers=True, worker_init_fn=WorkerInit(None))
    run.iterator = iter(loader)
    next(run.iterator)
    sys.exit(0)

process = multiprocessing.get_context('fork').Process(target=run)
process.start()
process.join(30)
print(process.exitcode)
"""


def test_a_run_that_ends_well_takes_its_data_workers_with_it_at_once():
    result = subprocess.run(
        [sys.executable, '-c', ENDS_WITH_A_LIVE_ITERATOR], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert result.stdout.split() == ['0'], result.stderr
    assert 'killed by signal' not in result.stderr


OUTLIVES_A_LAUNCHERS_SIGTERM = """
import os, signal, subprocess, sys, time
from torch.utils.data import DataLoader
from addp_backbone.runtime.processes import WorkerInit

loader = DataLoader(range(40), num_workers=1, persistent_workers=True, worker_init_fn=WorkerInit(None))
batches = iter(loader)
next(batches)
worker = batches._workers[0].pid
subprocess.run(['kill', '-TERM', str(worker)], check=True)
time.sleep(0.5)
print(len(list(batches)), batches._workers[0].is_alive())
"""


def test_a_data_worker_outlives_the_sigterm_that_a_launcher_sends_to_all():
    result = subprocess.run(
        [sys.executable, '-c', OUTLIVES_A_LAUNCHERS_SIGTERM], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert result.stdout.split() == ['39', 'True'], result.stderr
