"""Long: a disk that fills up at random moments of a run tears nothing; with room again the run goes on exactly."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_runs import assert_equal, final_state, start_training
from running import write_toy_config

from addp_backbone.checkpoint.integrity import verify

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='mounts a tmpfs')
NUM_MOMENTS, NUM_ITERS = 20, 20
DISK_BYTES = 4 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', f'size={DISK_BYTES}', 'tmpfs', str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip('no mounts allowed here')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(disk: Path, free_bytes: int) -> Path:
    """Leaves so much room on the disk."""
    filler = disk / 'filler'
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - free_bytes))
    return filler


def test_a_disk_that_is_full_at_any_moment_tears_nothing_and_the_run_goes_on_exactly(
    disk: Path, tmp_path: Path
) -> None:
    changes = {'train_cfg.max_iters': NUM_ITERS, 'train_cfg.val_interval': 5, 'default_hooks.checkpoint.interval': 1}
    config = write_toy_config(tmp_path / 'toy.py', **changes)
    unbroken = start_training(tmp_path / 'unbroken.log', config, tmp_path / 'unbroken')
    assert unbroken.wait() == 0, unbroken.output
    expected = final_state(tmp_path / 'unbroken', NUM_ITERS)
    used = sum(path.stat().st_size for path in (tmp_path / 'unbroken').rglob('*') if path.is_file())
    rng, reached = random.Random(0), []
    for number in range(NUM_MOMENTS):
        work_dir = disk / f'run{number}'
        filler = fill(disk, round(rng.uniform(0.02, 0.95) * used))
        run = start_training(tmp_path / f'{number}.log', config, work_dir)
        assert run.wait() == 1, run.output[-3000:]
        last = run.output.strip().splitlines()[-1]
        assert last.startswith('error: ') and 'No space left on device' in last, run.output[-3000:]
        assert 'Traceback' not in run.output, run.output[-3000:]
        checkpoints = sorted(work_dir.glob('iter_*.pth'))
        assert all(verify(path) for path in checkpoints)
        assert not list(work_dir.glob('.*.part'))
        reached.append(len(checkpoints))
        filler.unlink()
        resumed = start_training(tmp_path / f'{number}.resumed.log', config, work_dir, '--resume')
        assert resumed.wait() == 0, resumed.output[-3000:]
        got = final_state(work_dir, NUM_ITERS)
        for key in ('state_dict', 'optimizer', 'param_schedulers'):
            assert_equal(expected[key], got[key], key)
        shutil.rmtree(work_dir)
    assert len(set(reached)) > NUM_MOMENTS // 3, reached  # moments that differ
