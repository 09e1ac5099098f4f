"""A work dir has one owner: a live one is respected, a dead one's place is taken."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.work_dir import OWNER_FILE, Owner, _start_of, owned, read_owner

DAMAGED_ID = '{"host": "elsewhere", "pid": %s, "start": "", "launch": "", "since": ""}'


@pytest.fixture
def other() -> Iterator[subprocess.Popen]:
    """Another process of this host."""
    process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def lock_of(folder: Path, pid: int, **changes: str) -> None:
    owner = dataclasses.replace(Owner.this_process(), **{'pid': pid, 'start': _start_of(pid), **changes})
    (folder / OWNER_FILE).write_text(json.dumps(dataclasses.asdict(owner)))


def test_the_owner_is_noted_while_it_trains_and_no_longer(tmp_path: Path) -> None:
    with owned(tmp_path / 'run'):
        assert read_owner(tmp_path / 'run' / OWNER_FILE).pid == os.getpid()  # type: ignore[union-attr]
    assert list((tmp_path / 'run').iterdir()) == []


def test_beside_a_live_run_training_is_refused_with_who_it_is(tmp_path: Path, other: subprocess.Popen) -> None:
    lock_of(tmp_path, other.pid)
    with pytest.raises(LaunchError, match=rf'in use by another training, process {other.pid} on host'), owned(tmp_path):
        pass
    assert read_owner(tmp_path / OWNER_FILE).pid == other.pid  # type: ignore[union-attr]


def test_a_killed_owners_folder_is_taken_over_even_before_its_parent_has_noticed(
    tmp_path: Path, other: subprocess.Popen
) -> None:
    lock_of(tmp_path, other.pid)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not reaped
    with owned(tmp_path):
        assert read_owner(tmp_path / OWNER_FILE).pid == os.getpid()  # type: ignore[union-attr]


def test_a_process_that_got_the_id_of_a_dead_owner_does_not_count(tmp_path: Path, other: subprocess.Popen) -> None:
    lock_of(tmp_path, other.pid, start='another boot 7')
    with owned(tmp_path):
        pass


def test_of_another_host_it_cannot_tell_and_says_what_to_do(tmp_path: Path) -> None:
    lock_of(tmp_path, 1, host='elsewhere')
    with pytest.raises(LaunchError, match=rf'cannot tell whether that still runs.*remove .*{OWNER_FILE}'):  # noqa: SIM117
        with owned(tmp_path):
            pass


def test_a_requeued_job_takes_over_from_its_earlier_attempt_on_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_of(tmp_path, 1, host='elsewhere', launch='4711')
    monkeypatch.setenv('SLURM_JOB_ID', '4711')
    with owned(tmp_path):
        pass
    lock_of(tmp_path, 1, host='elsewhere', launch='4712')
    with pytest.raises(LaunchError, match='cannot tell'), owned(tmp_path):
        pass


def test_in_another_container_of_the_same_host_name_the_lock_on_the_file_tells(tmp_path: Path) -> None:
    lock_of(tmp_path, 2**22 + 1, namespace='pid:[1]')  # an id of no process here
    with (tmp_path / OWNER_FILE).open('r+') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LaunchError, match='in use by another training'), owned(tmp_path):
            pass
    with owned(tmp_path), (tmp_path / OWNER_FILE).open('r+') as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock_of(tmp_path, os.getpid(), namespace='pid:[1]', start='another boot 7')
    with owned(tmp_path):
        pass


@pytest.mark.parametrize(
    'content', ['', '{"host": ', '{"host": "x"}', '[' * 10_000, *(DAMAGED_ID % pid for pid in ('"1"', '-1', '1e40'))]
)
def test_a_damaged_lock_holds_nobody_up(tmp_path: Path, content: str) -> None:
    (tmp_path / OWNER_FILE).write_text(content)
    with owned(tmp_path):
        assert read_owner(tmp_path / OWNER_FILE).pid == os.getpid()  # type: ignore[union-attr]


def test_of_many_that_want_a_folder_at_once_exactly_one_gets_it(tmp_path: Path) -> None:
    lock_of(tmp_path, 2**22 + 1)  # a dead owner, whom all find at once
    children = []
    read_end, write_end = os.pipe()
    for _ in range(8):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.close(write_end)
                with owned(tmp_path):
                    os.read(read_end, 1)  # holds it until the others have tried
                    code = 0
            except LaunchError:
                code = 2
            finally:
                os._exit(code)
        children.append(pid)
    codes: list[int] = []
    while len(codes) < 7:  # the eighth holds the folder
        for child in list(children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                children.remove(child)
                codes.append(os.waitstatus_to_exitcode(status))
        time.sleep(0.01)
    os.close(write_end)
    (winner,) = children
    assert codes == [2] * 7
    assert os.waitstatus_to_exitcode(os.waitpid(winner, 0)[1]) == 0
