"""The scripts that start processes: signals passed on, preemption reported, restarts, one interface, requeueing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

WORKER = r"""
import os, signal, sys, time
from pathlib import Path
folder, rank = Path(os.environ['ADDP_RUN_FOLDER']), os.environ['RANK']
got = []
signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
(folder / str(os.getpid())).touch()
port = f':{int(os.environ["MASTER_PORT"]):04X}'
for table in ('tcp', 'tcp6'):
    for line in Path(f'/proc/net/{table}').read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(port) and words[3] == '0A':  # listens
            os.write(1, f'listens {words[1].partition(":")[0]}\n'.encode())
os.write(1, f'ready {os.environ.get("GLOO_SOCKET_IFNAME")}\n'.encode())
end = time.monotonic() + 60
while not got and time.monotonic() < end:
    time.sleep(0.02)
if rank == '0':
    (folder / 'preempted').touch()
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_a_signal_reaches_every_process_preemption_is_85_and_the_store_listens_on_localhost(tmp_path: Path) -> None:
    (tmp_path / 'worker.py').write_text(WORKER)
    environment = {name: value for name, value in os.environ.items() if name not in ('NNODES', 'GLOO_SOCKET_IFNAME')}
    run = subprocess.Popen(
        [ROOT / 'tools/torchrun.sh', '2', tmp_path / 'worker.py'],
        env={**environment, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    lines: list[str] = []
    while sum(line.startswith('ready') for line in lines) < 2:
        lines.append(run.stdout.readline().strip())
        assert lines[-1], 'it ended'
    run.send_signal(signal.SIGUSR1)
    assert run.wait(60) == 85
    run.stdout.close()
    assert {line for line in lines if line.startswith('ready')} == {'ready lo'}
    assert {line for line in lines if line.startswith('listens')} == {'listens 0100007F'}


def fake(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f'#!/bin/bash\n{text}\n')
    (folder / name).chmod(0o755)


def run_script(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith('SLURM')}
    environment.update(PATH=f'{folder}:{os.environ["PATH"]}', PYTHON='python', **variables)
    return subprocess.run(list(words), env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize('words', [['--max-restarts', '2'], ['--max-restarts=2']])
def test_restarts_are_an_option_of_the_launcher_and_not_of_training(words: list[str], tmp_path: Path) -> None:
    fake(tmp_path, 'python', 'echo "$MAX_RESTARTS" "${@:2}"')
    done = run_script(tmp_path, f'{ROOT}/tools/dist_train.sh', 'c.py', '2', '--amp', *words, '--work-dir', 'a b')
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'2 2 {ROOT}/tools/train.py c.py --launcher pytorch --amp --work-dir a b\n'
    assert run_script(tmp_path, f'{ROOT}/tools/dist_train.sh', 'c.py', '2', '--max-restarts', 'x').returncode == 2


SRUN = """
n=$(ls "$LOG" | wc -l)
printf '%s\\n' "$@" > "$LOG/$n"
[ "$n" -lt "$PREEMPTIONS" ] && exit 85
exit "$CODE"
"""


def test_a_slurm_run_asks_for_a_signal_ahead_and_resumes_until_it_has_ended(tmp_path: Path) -> None:
    fake(tmp_path, 'srun', SRUN)
    (tmp_path / 'log').mkdir()
    done = run_script(
        tmp_path,
        f'{ROOT}/tools/slurm_train.sh',
        'gpu',
        'name',
        'c.py',
        '--amp',
        LOG=str(tmp_path / 'log'),
        PREEMPTIONS='2',
        CODE='3',
        SIGNAL_SECONDS='120',
    )
    assert done.returncode == 3
    calls = [(tmp_path / 'log' / str(n)).read_text().splitlines() for n in range(3)]
    assert all('--signal=USR1@120' in call and call[:2] == ['-p', 'gpu'] for call in calls)
    assert ['--resume' in call for call in calls] == [False, True, True]
    assert done.stderr.count('asking for another allocation') == 2


def test_within_a_batch_job_the_job_is_requeued_and_resumes(tmp_path: Path) -> None:
    fake(tmp_path, 'srun', SRUN)
    fake(tmp_path, 'scontrol', 'echo "$@"')
    (tmp_path / 'log').mkdir()
    words = (f'{ROOT}/tools/slurm_train.sh', 'gpu', 'name', 'c.py')
    options = dict(LOG=str(tmp_path / 'log'), PREEMPTIONS='1', CODE='0', SLURM_JOB_ID='4711')
    first = run_script(tmp_path, *words, **options)
    assert (first.returncode, first.stdout) == (85, 'requeue 4711\n')
    assert run_script(tmp_path, *words, **options, SLURM_RESTART_COUNT='1').returncode == 0
    calls = [(tmp_path / 'log' / str(n)).read_text().splitlines() for n in range(2)]
    assert not any('--signal' in word or word == '-p' for call in calls for word in call)
    assert ['--resume' in call for call in calls] == [False, True]


def test_both_sides_of_the_launcher_agree_on_names_and_codes() -> None:
    from addp_backbone.runtime import preemption

    text = (ROOT / 'tools/torchrun.py').read_text()
    names = re.search(r"PREEMPTED, MARKER_FILE, RUN_FOLDER = (\d+), '(\w+)', '(\w+)'", text)
    assert names and names.groups() == (str(preemption.PREEMPTED), preemption.MARKER_FILE, preemption.RUN_FOLDER)
