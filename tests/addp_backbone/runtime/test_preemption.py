"""A signal saves after the running iteration and ends with a code of its own; resumed, the run ends as if unbroken."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, load_tool, logged_losses, write_toy_config

from addp_backbone.runtime.preemption import PREEMPTED
from addp_backbone.runtime.work_dir import OWNER_FILE

STOP = dict(type='SignalItself', at=3)


def train(config: Path, work_dir: Path, *words: str) -> int:
    return load_tool('train').main([str(config), '--work-dir', str(work_dir), *words])


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
BEFORE = [signal.getsignal(number) for number in SIGNALS]


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('unbroken')
    assert train(write_toy_config(folder / 'toy.py'), folder / 'run') == 0
    return folder / 'run'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_after_a_signal_and_a_resume_losses_equal_the_unbroken_runs(
    number: signal.Signals, unbroken: Path, tmp_path: Path
) -> None:
    stopping = write_toy_config(tmp_path / 'stopping.py', custom_hooks=[dict(STOP, number=int(number))])
    assert train(stopping, tmp_path / 'run') == PREEMPTED == 85
    assert {path.name for path in (tmp_path / 'run').glob('iter_*')} == {'iter_2.pth', 'iter_3.pth'}
    assert not (tmp_path / 'run' / OWNER_FILE).exists()
    assert train(write_toy_config(tmp_path / 'toy.py'), tmp_path / 'run', '--resume') == 0
    expected, got = logged_losses(unbroken), logged_losses(tmp_path / 'run')
    assert list(got) == [1, 2, 3, 4, 5, 6] and got == expected


def test_a_checkpoint_that_was_just_saved_is_not_saved_again(tmp_path: Path) -> None:
    stop = dict(STOP, at=2, number=int(signal.SIGTERM))
    config = write_toy_config(tmp_path / 'toy.py', **{'custom_hooks': [stop], 'default_hooks.checkpoint.interval': 2})
    assert train(config, tmp_path / 'run') == PREEMPTED
    assert [path.name for path in (tmp_path / 'run').glob('iter_*')] == ['iter_2.pth']


def test_signals_do_what_they_did_before_once_training_has_ended(unbroken: Path) -> None:
    assert [signal.getsignal(number) for number in SIGNALS] == BEFORE


def test_a_second_signal_ends_the_process_at_once_but_two_of_one_moment_are_one_request() -> None:
    script = """
import os, signal, time
from addp_backbone.runtime.preemption import catch_signals
with catch_signals():
    for pause in (0, 0.6, 0):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        print('alive', flush=True)
        time.sleep(pause)
        pause and os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ['alive', 'alive'] and done.returncode == 128 + signal.SIGTERM
    assert 'saving and ending after this iteration' in done.stderr and 'ending at once' in done.stderr
