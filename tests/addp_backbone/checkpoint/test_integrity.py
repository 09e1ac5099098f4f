"""Checkpoints prove themselves: every damage is found, also by resume, and every tool can still read the files."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from running import load_tool, toy_config, train_toy
from safetensors.torch import load_file

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.integrity import CHECKSUMS, SIGNED, UNCHECKED, examine, verify
from addp_backbone.checkpoint.locate import find_resumable_checkpoint
from addp_backbone.checkpoint.storage import read_checkpoint, write_atomically
from addp_backbone.files.atomic import remove_abandoned_parts, replace_file
from addp_backbone.runtime.launch import set_resume
from addp_backbone.runtime.saving import AtomicLocalBackend

TENSORS = {'w': torch.arange(2000.0), 'b': torch.ones(3)}
ZEROS = bytes(4096)


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_a_written_file_has_its_digest_and_is_read_by_torch_and_safetensors(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f'a{ending}'
    write_atomically(TENSORS, path)
    assert verify(path).state == SIGNED
    read = load_file(path) if ending == '.safetensors' else torch.load(path, mmap=True)
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    assert [part.name for part in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_any_changed_byte_of_the_tensors_is_found(ending: str, signed: bool, tmp_path: Path) -> None:
    path = tmp_path / f'a{ending}'
    if signed:
        write_atomically(TENSORS, path)
    elif ending == '.pth':
        torch.save(TENSORS, path)
        assert verify(path).state == CHECKSUMS
    else:
        pytest.skip('safetensors has no checksum of its own')
    whole = path.read_bytes()
    first = whole.index(TENSORS['w'].numpy().tobytes()[:400])
    for position in [*random.Random(0).sample(range(first, first + 8000), 20), *([9] if signed else [])]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert not examine(path), position
        with pytest.raises(CheckpointError, match='cannot be read, it is truncated'):
            read_checkpoint(path)


def test_files_without_any_checksum_are_told_apart_from_verified_ones(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, tmp_path / 'fast.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ('old.pth', 'fast.pth'):
        assert verify(tmp_path / name).state == UNCHECKED
        assert torch.equal(read_checkpoint(tmp_path / name)['w'], TENSORS['w'])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    'zeros in the middle': lambda whole: whole[:3000] + ZEROS[: len(whole) // 4] + whole[3000 + len(whole) // 4 :],
    'truncated': lambda whole: whole[:-300],
    'empty': lambda whole: b'',
    'garbage': lambda whole: random.Random(1).randbytes(len(whole)),
    'a page': lambda whole: b'<html>not found</html>',
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_resume_goes_on_from_the_newest_whole_checkpoint_and_says_what_is_lost(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for iteration in (2, 4, 6):
        state = dict(meta=dict(iter=iteration), state_dict=TENSORS)
        torch.save(state, tmp_path / 'new.pth')
        AtomicLocalBackend().put((tmp_path / 'new.pth').read_bytes(), tmp_path / f'iter_{iteration}.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_6.pth'))
    for name in ('iter_6.pth', 'iter_4.pth'):
        (tmp_path / name).write_bytes(DAMAGES[damage]((tmp_path / name).read_bytes()))
    cfg = Config(dict(work_dir=str(tmp_path)))
    said: list[str] = []
    monkeypatch.setattr('addp_backbone.checkpoint.locate.print_log', lambda text, **_: said.append(text))
    set_resume(cfg, 'auto')
    assert Path(cfg.load_from).name == 'iter_2.pth'
    text = '\n'.join(said)
    assert 'iter_6.pth is damaged' in text and 'iter_4.pth is damaged' in text and '4 iterations are lost' in text
    (tmp_path / 'iter_2.pth').write_bytes(b'')
    with pytest.raises(
        CheckpointError, match=r'(?s)no checkpoint in .* is whole.*iter_6\.pth.*iter_4\.pth.*iter_2\.pth'
    ):
        set_resume(cfg, 'auto')


def test_the_fallback_is_never_a_later_checkpoint_that_an_earlier_run_left_in_the_folder(tmp_path: Path) -> None:
    for age, iteration in enumerate((2, 4, 900)):  # the folder was trained in before
        write_atomically(TENSORS, tmp_path / f'iter_{iteration}.pth')
        os.utime(tmp_path / f'iter_{iteration}.pth', (1e9 - age, 1e9 - age))
    (tmp_path / 'iter_4.pth').write_bytes(b'')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_4.pth'))
    assert find_resumable_checkpoint(tmp_path) == tmp_path / 'iter_2.pth'


def test_a_run_signs_its_checkpoints_and_a_damaged_one_costs_its_iterations_only(tmp_path: Path) -> None:
    unbroken = train_toy(toy_config(tmp_path))
    path = tmp_path / 'iter_6.pth'
    assert verify(path).state == SIGNED
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + bytes(64) + whole[2064:])
    with pytest.raises(CheckpointError, match='cannot be read'):
        train_toy(toy_config(tmp_path), resume=str(path))
    resumed = train_toy(toy_config(tmp_path), resume='auto')
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert verify(path).state == SIGNED


def test_the_doctor_tells_the_state_of_each_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_atomically(TENSORS, tmp_path / 'iter_2.pth')
    main = load_tool('doctor').main
    assert main(['checkpoint', str(tmp_path)]) == 0
    (tmp_path / 'iter_4.pth').write_bytes((tmp_path / 'iter_2.pth').read_bytes()[:-9])
    assert main(['checkpoint', str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert 'iter_4.pth' in text and 'damaged' in text and 'iter_2.pth' in text and 'verified' in text
    assert main(['checkpoint', str(tmp_path / 'iter_2.pth')]) == 0
    assert main(['checkpoint', str(tmp_path / 'nix')]) == 1


def test_parts_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen(['true'])
    dead.wait()
    host = socket.gethostname().replace('.', '-')
    names = {pid: f'.a.pth.{host}.{pid}.part' for pid in (dead.pid, os.getpid())}
    for name in (*names.values(), f'.a.pth.elsewhere.{dead.pid}.part', '.other.part', 'a.part'):
        (tmp_path / name).touch()
    os.utime(tmp_path / f'.a.pth.elsewhere.{dead.pid}.part', (0, 0))
    removed = remove_abandoned_parts(tmp_path)
    assert sorted(removed) == sorted([names[dead.pid], f'.a.pth.elsewhere.{dead.pid}.part'])
    assert (tmp_path / names[os.getpid()]).exists() and (tmp_path / '.other.part').exists()


def test_copies_of_tensors_that_share_few_bytes_are_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('addp_backbone.checkpoint.integrity.available_memory', lambda: 10**9)
    with pytest.raises(CheckpointError, match=r'is not written: .*takes 8\.0 GB of memory, and 1\.0 GB are'):
        write_atomically(dict.fromkeys(map(str, range(1000)), torch.zeros(1).expand(10**6)), tmp_path / 'a.pth')


def test_a_checkpoint_that_cannot_be_written_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    replace_file(tmp_path / 'iter_1.pth', b'before')
    monkeypatch.setattr('addp_backbone.runtime.saving.replace_file', full)
    monkeypatch.setattr('addp_backbone.checkpoint.storage.replace_file', full)
    with pytest.raises(CheckpointError, match=r'iter_2\.pth cannot be written.*No space left.*--resume'):
        AtomicLocalBackend().put(b'x', tmp_path / 'iter_2.pth')
    with pytest.raises(CheckpointError, match=r'a\.pth cannot be written.*No space left'):
        write_atomically(TENSORS, tmp_path / 'a.pth')
