"""Stages of tools/quickstart.py: run once, resumed, stopped with a reason, never two runs in one folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.stages import Stage, StageError, finished_seconds, read_counts, run_stages

APPEND = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"


def append(name, file, text):
    return Stage(name, 1, ('-c', APPEND, str(file), text), (file,))


def test_a_finished_stage_is_not_repeated(tmp_path):
    stages = [append('one', tmp_path / 'out', 'x')]
    run_stages(stages, tmp_path / 'work', tmp_path)
    run_stages(stages, tmp_path / 'work', tmp_path)
    assert (tmp_path / 'out').read_text() == 'x'
    assert finished_seconds(stages[0], tmp_path / 'work') is not None


def test_a_stage_runs_again_if_its_command_changed_or_its_output_is_gone(tmp_path):
    work = tmp_path / 'work'
    run_stages([append('one', tmp_path / 'out', 'x')], work, tmp_path)
    run_stages([append('one', tmp_path / 'out', 'y')], work, tmp_path)
    assert (tmp_path / 'out').read_text() == 'xy'
    (tmp_path / 'out').unlink()
    run_stages([append('one', tmp_path / 'out', 'y')], work, tmp_path)
    assert (tmp_path / 'out').read_text() == 'y'


def test_a_failing_stage_stops_the_run_with_the_end_of_its_log_and_is_run_again(tmp_path):
    stages = [Stage('bad', 1, ('-c', "raise SystemExit('no such data')")), append('never', tmp_path / 'out', 'x')]
    with pytest.raises(StageError, match=r'stage bad failed.*exit code 1(.|\n)*no such data'):
        run_stages(stages, tmp_path / 'work', tmp_path)
    assert not (tmp_path / 'out').exists()
    assert finished_seconds(stages[0], tmp_path / 'work') is None


def test_a_stage_that_leaves_out_its_output_has_failed(tmp_path):
    with pytest.raises(StageError, match=r'wrote no .*missing'):
        run_stages([Stage('idle', 1, ('-c', 'pass'), (tmp_path / 'missing',))], tmp_path / 'work', tmp_path)


def test_progress_of_training_logs_and_bars_gives_the_remaining_time(tmp_path, capsys):
    code = "import time; print('Iter(train) [ 30/40]', flush=True); time.sleep(0.8)"
    run_stages([Stage('train', 1000, ('-c', code))], tmp_path, tmp_path)
    first, *_ = capsys.readouterr().out.splitlines()
    assert '[ 1/1] train' in first
    code = "import time; print(' 50%|###   | 10/20 [00:01<00:01]', flush=True); time.sleep(1.2)"
    log = tmp_path / 'logs' / 'bar.log'
    run_stages([Stage('bar', 1000, ('-c', code))], tmp_path, tmp_path)
    assert read_counts(log) == (10, 20)
    assert read_counts(tmp_path / 'logs' / 'train.log') == (30, 40)


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux ends a stage with its killed parent')
def test_a_killed_run_takes_its_stage_with_it_and_the_next_run_starts_it_again(tmp_path):
    beat = "import time, pathlib\nwhile True: pathlib.Path('beat').write_text(str(time.time())); time.sleep(0.05)"
    runner = ('import pathlib; from pretrain.stages import Stage, run_stages\n'
              f"run_stages([Stage('beat', 1, ('-c', {beat!r}))], pathlib.Path('work'), pathlib.Path('.'))")
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen([sys.executable, '-c', runner], cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(root)})
    while not (tmp_path / 'beat').exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.3)
    last = (tmp_path / 'beat').read_text()
    time.sleep(0.3)
    assert (tmp_path / 'beat').read_text() == last
    stage = append('beat', tmp_path / 'out', 'x')
    run_stages([stage], tmp_path / 'work', tmp_path)
    assert json.loads((tmp_path / 'work/finished/beat.json').read_text())['fingerprint'] == stage.fingerprint
