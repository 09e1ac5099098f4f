"""A look at what a pickle declares before anything is allocated: tensors and arrays against the bytes that are there.

``torch.load(weights_only=True)`` executes nothing, but it believes sizes: a tensor that claims more elements than its
storage makes torch enlarge the storage; a storage of the legacy format or a numpy array gets the size it declares.
A file of 1 kB can ask for 256 GB that way. Here the pickle is replayed with stand-ins in place of every function and
class; they do nothing but compare.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from addp_backbone.checkpoint.integrity import (
    LEGACY_START,
    ZIP_START,
    OversizeError,
    check_archive,
    check_memory,
    format_bytes,
)

MAX_EXPANDED_BYTES = 16 << 20  # of a tensor that repeats its storage by strides of 0
_ITEM_BYTES = {
    **dict.fromkeys(('Bool', 'Byte', 'Char', 'bool', 'uint8', 'int8', 'Untyped', 'QInt8', 'QUInt8'), 1),
    **dict.fromkeys(('Half', 'BFloat16', 'Short', 'float16', 'bfloat16', 'int16', 'uint16'), 2),
    **dict.fromkeys(('Float', 'Int', 'float32', 'int32', 'uint32', 'QInt32', 'complex32'), 4),
    **dict.fromkeys(('Double', 'Long', 'float64', 'int64', 'uint64', 'ComplexFloat', 'complex64'), 8),
    **dict.fromkeys(('ComplexDouble', 'complex128'), 16),
}
_PLAIN: dict[str, Callable[..., Any]] = {
    'collections.OrderedDict': OrderedDict,
    'collections.Counter': Counter,
    'builtins.set': set,
    '_codecs.encode': lambda text, encoding: text.encode(encoding),
}
_DTYPE = re.compile(r'[<>|=]?[?bBhHiIlLqQefdgFDGSUu][0-9]{0,4}')


def survey(path: Path) -> None:
    """Compares what a torch file or a pickle declares with what it holds.

    Args:
        path: A zip archive of torch, a torch file from before 1.6, or a ``.pkl``.

    Raises:
        OversizeError: If a size exceeds what the file holds, or memory.
        pickle.UnpicklingError: If a function would be called that no weights need.
        Exception: What the pickle module raises for malformed files.
    """
    with path.open('rb') as file:
        start = file.read(len(LEGACY_START))
    if start.startswith(ZIP_START) and path.suffix != '.pkl':
        _survey_archive(path)
    else:
        _survey_stream(path, 4 if start == LEGACY_START and path.suffix != '.pkl' else 1)


def _survey_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size)
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise OversizeError('two of its entries have the same name')
        for name, entry in entries.items():
            if not name.endswith('data.pkl'):
                continue
            if not entry.CRC:
                del entry.CRC  # written without checksums, which zipfile would compare
            folder = name.removesuffix('data.pkl') + 'data/'
            _Survey(io.BytesIO(archive.read(entry)), partial(_entry_bytes, entries, folder)).load()


def _entry_bytes(entries: Mapping[str, zipfile.ZipInfo], folder: str, key: str) -> int:
    entry = entries.get(f'{folder}{key}')
    return entry.file_size if entry else 0


def _survey_stream(path: Path, num_pickles: int) -> None:
    """Surveys a ``.pkl``, or a torch file from before 1.6 (magic number, protocol, system, content)."""
    size = path.stat().st_size
    check_memory(size)
    with path.open('rb') as file:
        stream = _Survey(file, lambda key: size)
        for _ in range(num_pickles):
            stream.load()
    declared = sum(stream.storages.values())
    if declared > size:
        raise OversizeError(f'its storages declare {format_bytes(declared)}, the file has {format_bytes(size)}')


class _Storage:
    """A storage: how many bytes, and how many each element has."""

    def __init__(self, num_bytes: int, item_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.item_bytes = item_bytes


class _Standin:
    """Takes the place of a function or class; a subclass for each has its name in ``path``."""

    path = ''

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        check = _CALLS.get(cls.path)
        if check is not None:
            return check(*args) or super().__new__(cls)
        if cls.path.startswith(('torch.', 'numpy.', 'builtins.')):
            raise pickle.UnpicklingError(f'{cls.path} is called, which no weights need')
        return super().__new__(cls)  # torch refuses it with its name

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if self.path == _RECONSTRUCT:
            _check_array_state(state)
        elif self.path == 'numpy.dtype':
            if not isinstance(state, tuple) or any(part is not None for part in state[2:5]):
                raise pickle.UnpicklingError('numpy.dtype with fields, which no weights need')
        elif self.path.startswith('torch.'):
            raise pickle.UnpicklingError(f'{self.path} is given a state, which no weights need')

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *args: Any) -> _Standin:
        return _Standin()  # torch refuses to call what a call has made

    def append(self, value: Any) -> None:
        """Takes an item, as lists do."""


class PythonUnpickler(pickle._Unpickler):
    """The unpickler in Python: the C version allocates what an opcode declares (memo entries, byte arrays) at once."""

    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def load_bytearray8(self) -> None:
        """As the base class, but the bytes are read before a byte array of that size is made."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), 'little'))))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


class _Survey(PythonUnpickler):
    """Replays a pickle with stand-ins, and compares."""

    def __init__(self, file: Any, bytes_of: Callable[[str], int]) -> None:
        super().__init__(file, encoding='latin1')
        self.bytes_of = bytes_of
        self.storages: dict[str, int] = {}
        self.names: dict[str, type[_Standin]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for everything but a few plain containers."""
        path = f'{module}.{name}'.replace('__builtin__.', 'builtins.').replace('numpy._core.', 'numpy.core.')
        if path in _PLAIN:
            return _PLAIN[path]
        if path not in self.names:
            self.names[path] = type(name, (_Standin,), {'path': path})
        return self.names[path]

    def persistent_load(self, pid: Any) -> Any:
        """A storage: its declared bytes against those of its entry in the archive."""
        if not isinstance(pid, tuple) or len(pid) < 5:
            raise pickle.UnpicklingError(f'a reference {str(pid)[:80]!r}, wanted one to a storage')
        kind, key, numel = pid[1], str(pid[2]), pid[4]
        item_bytes = _item_bytes(kind)
        declared = int(numel) * item_bytes
        if not 0 <= declared <= self.bytes_of(key):
            raise OversizeError(
                f'storage {key} declares {format_bytes(declared)}, the file has '
                f'{format_bytes(self.bytes_of(key))} for it'
            )
        self.storages[key] = declared
        return _Storage(declared, item_bytes)


def _item_bytes(kind: Any) -> int:
    name = getattr(kind, 'path', '').rpartition('.')[2].removesuffix('Storage')
    return _ITEM_BYTES.get(name, 1)


def _check_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, item_bytes: int = 0) -> None:
    """A tensor: the elements that size and strides reach against those of the storage."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError(f'a tensor of a {type(storage).__name__}, wanted a storage')
    item = item_bytes or storage.item_bytes
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    if min((int(offset), *size, *stride)) < 0 or len(size) != len(stride):
        raise OversizeError(f'a tensor of size {size} has stride {stride} and offset {offset}')
    reach = int(offset) + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    declared = math.prod(size) * item
    if declared and (reach * item > storage.num_bytes or declared > max(storage.num_bytes, MAX_EXPANDED_BYTES)):
        raise OversizeError(
            f'a tensor of size {size} declares {format_bytes(max(reach * item, declared))}, its storage has '
            f'{format_bytes(storage.num_bytes)}'
        )


def _check_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> None:
    _check_tensor(storage, offset, size, stride, item_bytes=_item_bytes(dtype))


def _check_reconstruct(kind: Any, shape: Any, code: Any) -> None:
    if tuple(shape) != (0,):
        raise OversizeError(f'a numpy array is made with shape {tuple(shape)} before its content is read')


def _check_array_state(state: Any) -> None:
    if not isinstance(state, tuple) or len(state) < 5 or not isinstance(state[4], bytes | bytearray | str):
        raise pickle.UnpicklingError('a numpy array of objects, which no weights need')
    if math.prod(map(int, state[1])) > max(1, len(state[4])):
        raise OversizeError(f'a numpy array of shape {tuple(state[1])} has {len(state[4])} bytes')


def _check_dtype(code: Any, *_: Any) -> None:
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise pickle.UnpicklingError(f'numpy.dtype({str(code)[:40]!r}), which no weights need')


def _check_bytes(kind: str, position: int) -> Callable[..., None]:
    def check(*args: Any) -> None:
        if len(args) <= position or not isinstance(args[position], bytes | bytearray | str):
            raise OversizeError(f'{kind} is made without the bytes it shall have')

    return check


def _rebuild_subclass(function: Any, kind: Any, args: Any, state: Any) -> Any:
    return function(*args)


def _accept(*args: Any) -> None:
    """Makes nothing larger than its arguments."""


_RECONSTRUCT = 'numpy.core.multiarray._reconstruct'
_CALLS: dict[str, Callable[..., Any]] = {
    'torch._utils._rebuild_tensor': _check_tensor,
    'torch._utils._rebuild_tensor_v2': _check_tensor,
    'torch._utils._rebuild_tensor_v3': _check_tensor_v3,
    'torch._tensor._rebuild_from_type_v2': _rebuild_subclass,
    'torch._utils._rebuild_parameter': _accept,
    'torch._utils._rebuild_parameter_with_state': _accept,
    'torch._utils._rebuild_meta_tensor_no_storage': _accept,
    'torch.nn.parameter.Parameter': _accept,
    'torch.Size': _accept,
    'torch.device': _accept,
    'builtins.bytearray': _check_bytes('a byte array', 0),
    'builtins.complex': _accept,
    'builtins.getattr': _accept,
    _RECONSTRUCT: _check_reconstruct,
    'numpy.core.multiarray.scalar': _check_bytes('a numpy number', 1),
    'numpy.core.numeric._frombuffer': _check_bytes('a numpy array', 0),
    'numpy.dtype': _check_dtype,
}
