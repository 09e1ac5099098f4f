"""What a file declares is compared with what it holds before anything is allocated; honest files are read."""

from __future__ import annotations

import argparse
import json
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from addp_backbone.checkpoint import integrity
from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.storage import read_checkpoint

HUGE = 2**38


class Call:
    """Pickles as a call of ``function`` with ``args``."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def enlarged(path: Path, old: bytes, new: bytes) -> None:
    """Writes a torch file again with other bytes in its pickle, and right checksums."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in entries.items():
            assert old in content or not name.endswith('data.pkl')
            archive.writestr(name, content.replace(old, new) if name.endswith('data.pkl') else content)


def big_tensor(path: Path) -> None:
    tensor = torch.zeros(3)
    storage = tensor.untyped_storage()
    torch.save(
        {'w': Call(torch._utils._rebuild_tensor_v2, tensor.storage(), 0, (HUGE,), (1,), False, OrderedDict())}, path
    )
    assert storage.nbytes() == 12


def repeated_tensor(path: Path) -> None:
    torch.save({'w': torch.zeros(1).expand(HUGE)}, path)


def big_storage(path: Path) -> None:
    torch.save({'w': torch.zeros(77)}, path)
    enlarged(path, b'K\x4d', b'J\xff\xff\xff\x7f')  # 77 as the storage's and the tensor's number of elements


def legacy_storage(path: Path) -> None:
    torch.save({'w': torch.zeros(77)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b'K\x4d', b'J\xff\xff\xff\x7f'))


def deflated(path: Path) -> None:
    torch.save({'w': torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def sparse(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.save({'w': torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (HUGE,))}, path)


def subclass(path: Path) -> None:
    torch.save({'w': Call(torch._tensor._rebuild_from_type_v2, torch.FloatTensor, torch.Tensor, (HUGE,), {})}, path)


def safetensors_header(path: Path) -> None:
    path.write_bytes(struct.pack('<Q', 2**60) + b'{}')


def safetensors_shape(path: Path) -> None:
    header = json.dumps({'w': dict(dtype='F32', shape=[HUGE], data_offsets=[0, 4 * HUGE])}).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header + bytes(8))


HOSTILE: dict[str, Callable[[Path], Any]] = {
    'a.pkl: a numpy array of a shape': lambda path: path.write_bytes(pickle.dumps(Call(np.ndarray, (HUGE,)))),
    'b.pkl: a reconstructed array': lambda path: path.write_bytes(
        pickle.dumps(Call(np.core.multiarray._reconstruct, np.ndarray, (HUGE,), b'd'))
    ),
    'd.pkl: a byte array': lambda path: path.write_bytes(b'\x80\x05\x96' + struct.pack('<Q', HUGE) + b'.'),
    'e.pkl: an array of objects': lambda path: path.write_bytes(
        pickle.dumps(
            Call(np.core.multiarray._reconstruct, np.ndarray, (0,), b'b', state=(1, (HUGE,), np.dtype('O'), False, []))
        )
    ),
    'a.pth: a numpy array of a shape': lambda path: torch.save({'w': Call(np.ndarray, (HUGE,))}, path),
    'b.pth: a byte array': lambda path: torch.save({'w': Call(bytearray, HUGE)}, path),
    'c.pth: a tensor class': lambda path: torch.save({'w': Call(torch.FloatTensor, HUGE)}, path),
    'd.pth: a tensor larger than its storage': big_tensor,
    'e.pth: a tensor that repeats one number': repeated_tensor,
    'j.pth: a sparse tensor': sparse,
    'f.pth: a storage larger than its entry': big_storage,
    'g.pth: a storage of the old format': legacy_storage,
    'h.pth: a compressed archive': deflated,
    'i.pth: a tensor class through a subclass': subclass,
    'a.safetensors: a header': safetensors_header,
    'b.safetensors: a shape': safetensors_shape,
}


@pytest.mark.parametrize('case', HOSTILE)
def test_a_file_that_declares_more_than_it_holds_is_refused_before_anything_is_allocated(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / case.partition(':')[0]
    HOSTILE[case](path)
    for reader in ('torch.load', 'addp_backbone.checkpoint.storage._NumpyUnpickler.load'):
        monkeypatch.setattr(reader, lambda *_, **__: pytest.fail('the file was read'))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_what_does_not_fit_into_memory_is_refused_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({'w': torch.zeros(2000)}, tmp_path / 'a.pth')
    monkeypatch.setattr(integrity, 'available_memory', lambda: 5000)
    with pytest.raises(CheckpointError, match=r'takes 8\.\d kB of memory, and 5\.0 kB are free'):
        read_checkpoint(tmp_path / 'a.pth')


def test_running_out_of_memory_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    torch.save({'w': torch.zeros(2)}, tmp_path / 'a.pth')
    monkeypatch.setattr('torch.load', exhausted)
    with pytest.raises(CheckpointError, match='does not fit into the memory'):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('new_format', [True, False])
def test_everything_that_honest_checkpoints_hold_is_read(new_format: bool, tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    content = dict(
        views=[base[1:, ::2], base.t(), base[:0], torch.tensor(3), torch.zeros(1, 1).expand(3, 3)],
        kinds=[torch.ones(2, dtype=kind) for kind in (torch.bfloat16, torch.float16, torch.int64, torch.bool)],
        parameter=torch.nn.Parameter(torch.ones(2)),
        optimizer=OrderedDict(state={0: dict(step=torch.tensor(1.0))}),
        args=argparse.Namespace(lr=1.0),
        numpy=[np.arange(6.0).reshape(2, 3), np.float64(3)],
        log=HistoryBuffer([1.0, 2.0], [1, 1]),
        size=torch.Size([1, 2]),
    )
    torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=new_format)
    read = read_checkpoint(tmp_path / 'a.pth')
    for name in ('views', 'kinds'):
        assert all(torch.equal(a, b) for a, b in zip(read[name], content[name], strict=True))
    assert read['args'].lr == 1 and read['numpy'][0].tolist() == content['numpy'][0].tolist()


@pytest.mark.parametrize('protocol', range(2, 6))
def test_numpy_pickles_of_any_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    arrays = {'model': {'w': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.float32(2) * np.ones(3)}}
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps(arrays, protocol))
    read = read_checkpoint(tmp_path / 'a.pkl')
    assert np.array_equal(read['model']['w'], arrays['model']['w'])


def test_a_high_memo_entry_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / 'a.pkl').write_bytes(b'\x80\x04}r\xff\xff\xff\x7f.')  # the C unpickler would make room for 2^31 entries
    assert read_checkpoint(tmp_path / 'a.pkl') == {}
