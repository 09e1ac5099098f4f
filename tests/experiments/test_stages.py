"""Stages: run once, resumed, stopped with a reason, never two runs in one folder."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.engine import dry_run, read_counts, run_stages
from experiments.processes import ToolForks
from experiments.stages import Stage, StageError, finished_seconds

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


def test_a_mark_that_an_earlier_version_left_counts_for_nothing(tmp_path):
    stage, work = append('one', tmp_path / 'out', 'x'), tmp_path / 'work'
    run_stages([stage], work, tmp_path)
    (work / 'finished/one.json').write_text(json.dumps(dict(fingerprint=stage.fingerprint, seconds=1.0)))
    run_stages([stage], work, tmp_path)
    assert (tmp_path / 'out').read_text() == 'xx'


def test_a_stage_runs_again_if_one_that_it_needs_did(tmp_path):
    work, first, second = tmp_path / 'work', tmp_path / 'first', tmp_path / 'second'

    def pair(text):
        before = append('before', first, text)
        return [before, replace(append('after', second, 'x'), needs=(before,))]

    run_stages(pair('x'), work, tmp_path)
    run_stages(pair('x'), work, tmp_path)
    assert second.read_text() == 'x'
    run_stages(pair('y')[:1], work, tmp_path)  # as if the run had been cut before the second stage
    run_stages(pair('y'), work, tmp_path)
    assert (first.read_text(), second.read_text()) == ('xy', 'xx')


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
    first, *_, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r'16:(39|40) min left in all; train  16:(39|40) min', first)  # nothing in the log yet
    assert last.startswith('[ 1/1] train')
    code = "import time; print(' 50%|###   | 10/20 [00:01<00:01]', flush=True); time.sleep(1.2)"
    log = tmp_path / 'logs' / 'bar.log'
    run_stages([Stage('bar', 1000, ('-c', code))], tmp_path, tmp_path)
    assert read_counts(log) == (10, 20)
    assert read_counts(tmp_path / 'logs' / 'train.log') == (30, 40)


def wait_for(*names):
    """A stage that ends once all of these files are there, within ten seconds."""
    return (
        f"import pathlib, sys, time; pathlib.Path('{names[0]}').touch(); end = time.monotonic() + 10\n"
        f'while not all(pathlib.Path(n).exists() for n in {names}):\n'
        "    time.sleep(0.01)\n    if time.monotonic() > end: sys.exit('alone')"
    )


def test_stages_that_need_nothing_of_each_other_run_side_by_side(tmp_path):
    stages = [Stage('a', 1, ('-c', wait_for('a', 'b'))), Stage('b', 1, ('-c', wait_for('b', 'a')))]
    run_stages(stages, tmp_path / 'work', tmp_path, lanes=2)
    assert all(finished_seconds(stage, tmp_path / 'work') is not None for stage in stages)


def test_a_stage_starts_only_when_what_it_needs_has_finished_and_others_go_before_it(tmp_path):
    def note(name):
        wait = wait_for(name, 'c') if name == 'a' else wait_for(name)
        return f"open('order', 'a').write('+{name}')\n{wait}\nopen('order', 'a').write('-{name}')"

    a = Stage('a', 1, ('-c', note('a')))
    stages = [a, Stage('b', 1, ('-c', note('b')), needs=(a,)), Stage('c', 1, ('-c', note('c')))]
    run_stages(stages, tmp_path / 'work', tmp_path, lanes=2)  # a ends when c has begun
    order = (tmp_path / 'order').read_text()
    assert order.index('-a') < order.index('+b') and order.index('+c') < order.index('-a')


def test_a_failing_stage_stops_the_one_beside_it(tmp_path):
    beat = "import time, pathlib\nwhile True: pathlib.Path('beat').write_text(str(time.time())); time.sleep(0.02)"
    fail = "import pathlib, sys, time\nwhile not pathlib.Path('beat').exists(): time.sleep(0.02)\nsys.exit('no')"
    with pytest.raises(StageError, match='stage fail failed'):
        run_stages(
            [Stage('beat', 1, ('-c', beat)), Stage('fail', 1, ('-c', fail))], tmp_path / 'work', tmp_path, lanes=2
        )
    last = (tmp_path / 'beat').read_text()
    time.sleep(0.2)
    assert (tmp_path / 'beat').read_text() == last


def test_where_a_failing_stage_ends_only_those_that_need_it_the_others_still_run(tmp_path):
    bad = Stage('bad', 1, ('-c', "raise SystemExit('no such data')"))
    after = replace(append('after', tmp_path / 'after', 'x'), needs=(bad,))
    last = replace(append('last', tmp_path / 'last', 'x'), needs=(after,))
    good, lines = append('good', tmp_path / 'good', 'x'), []
    assert run_stages(
        [bad, after, last, good], tmp_path / 'work', tmp_path, lanes=2, keep_going=True, report=lines.append
    ) == [bad]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ['good']
    text = '\n'.join(lines)
    assert 'no such data' in text and 'after: left out, as bad failed' in text
    assert 'last: left out, as after failed' in text


def test_a_dry_run_lists_every_command_and_what_has_finished_and_runs_nothing(tmp_path):
    stages = [append('one', tmp_path / 'out', 'x'), append('two', tmp_path / 'other', 'a b')]
    run_stages(stages[:1], tmp_path / 'work', tmp_path)
    first, first_command, second, second_command = dry_run(stages, tmp_path / 'work')
    assert first == '\n# [1/2] one, finished' and second == '\n# [2/2] two'
    assert shlex.split(second_command)[1:] == list(stages[1].command) and first_command != second_command
    assert not (tmp_path / 'other').exists()


def test_a_need_that_does_not_stand_before_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='stage a needs b'):
        run_stages([Stage('a', 1, ('-c', 'pass'), needs=(Stage('b', 1, ('-c', 'pass')),))], tmp_path / 'work', tmp_path)
    assert not (tmp_path / 'work').exists()


@pytest.mark.skipif(sys.platform != 'linux', reason='forks of a process that has imported torch')
def test_forked_tools_do_what_fresh_ones_do_and_leave_no_trace_in_each_other(tmp_path):
    script = (
        "import os, sys, torch\nif __name__ == '__main__':\n"
        "    print(*sys.argv, os.getcwd(), torch.get_num_threads(), hasattr(torch, 'stain'))\n"
        "    torch.stain = True\n    sys.exit({'good': 0, 'bad': 'no such data'}[sys.argv[1]])"
    )
    (tmp_path / 'tool.py').write_text(script)
    stages = [
        Stage('one', 1, ('tool.py', 'good')),
        Stage('two', 1, ('tool.py', 'good')),
        Stage('three', 1, ('tool.py', 'bad')),
    ]
    with pytest.raises(StageError, match=r'stage three failed \(exit code 1\)(.|\n)*no such data'):
        run_stages(stages, tmp_path / 'work', tmp_path, start=ToolForks(threads=1))
    for name in ('one', 'two'):
        assert (tmp_path / f'work/logs/{name}.log').read_text() == f'tool.py good {tmp_path} 1 False\n'


@pytest.mark.parametrize('start', ['start_command', 'ToolForks(threads=1)'])
@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux ends a stage with its killed parent')
def test_a_killed_run_takes_its_stage_with_it_and_the_next_run_starts_it_again(tmp_path, start):
    beat = "import time, pathlib\nwhile True: pathlib.Path('beat').write_text(str(time.time())); time.sleep(0.05)"
    (tmp_path / 'beat.py').write_text(beat)
    runner = (
        'import pathlib; from experiments.engine import run_stages; from experiments.stages import Stage\n'
        'from experiments.processes import ToolForks, start_command\n'
        f"run_stages([Stage('beat', 1, ('beat.py',))], pathlib.Path('work'), pathlib.Path('.'), start={start})"
    )
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, '-c', runner], cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(root)})
    while not (tmp_path / 'beat').exists():
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.3)
    last = (tmp_path / 'beat').read_text()
    time.sleep(0.3)
    assert (tmp_path / 'beat').read_text() == last
    stage = append('beat', tmp_path / 'out', 'x')
    run_stages([stage], tmp_path / 'work', tmp_path)
    assert json.loads((tmp_path / 'work/finished/beat.json').read_text())['fingerprint'] == stage.fingerprint
