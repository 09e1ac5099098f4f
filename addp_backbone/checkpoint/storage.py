"""Reading checkpoints without executing anything in them, writing them atomically, loading them without silence."""

from __future__ import annotations

import argparse
import io
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from numpy._core import multiarray, numeric  # type: ignore[import-not-found, unused-ignore]  # what pickled arrays name
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from addp_backbone.checkpoint.errors import CheckpointError, refuse_remote
from addp_backbone.checkpoint.foreign import foreign_kind
from addp_backbone.checkpoint.integrity import (
    OversizeError,
    check_memory,
    sign_archive,
    sign_safetensors,
    unsigned_metadata,
    verify,
)
from addp_backbone.checkpoint.matching import match_tensors, unwrap_state_dict
from addp_backbone.checkpoint.survey import PythonUnpickler, survey
from addp_backbone.files.atomic import remove_abandoned_parts, replace_file

CONVERT_COMMAND = 'python tools/convert_checkpoint.py SRC DST'
DOCTOR_COMMAND = 'python tools/doctor.py checkpoint FILE|DIR'
# What the readers raise for files that are no checkpoints, or not whole.
_READING_ERRORS = (
    SafetensorError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    zipfile.BadZipFile,
    struct.error,
    zlib.error,
)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU without executing code from it, once it has proved to be whole.

    ``.safetensors`` by safetensors; ``.pkl`` (detectron2) by an unpickler that admits numpy arrays and nothing else;
    anything else by ``torch.load(weights_only=True)``, with ``argparse.Namespace`` and what mmengine's own checkpoints
    hold (log buffers, numpy scalars) allowed on top of torch's list. Before that the file's digest is verified (or its
    archive's checksums, see :mod:`addp_backbone.checkpoint.integrity`), and the sizes it declares are compared with the
    file's and with the free memory.

    Args:
        path: A local file.

    Returns:
        What the file holds, a dict: either a state dict or a training checkpoint with the state dict under a key.

    Raises:
        CheckpointError: If the file is missing, damaged, no dict, does not fit into memory, or needs more than the
            types above.
    """
    refuse_remote(path)
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f'checkpoint {path} is a folder, wanted a file in it')
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} does not exist; a backbone file is made by `{CONVERT_COMMAND}`')
    if kind := foreign_kind(path):
        raise CheckpointError(f'{path} is no checkpoint: it is {kind}')
    try:
        checkpoint = _read_verified(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'checkpoint {path} is refused: reading it would execute code or make objects that no weights need: '
            f'{_refused_object(error)}. Ask its author for a safetensors file, or save its state dict alone'
        ) from error
    except OversizeError as error:
        raise CheckpointError(f'checkpoint {path} is refused: {_first_line(error)}') from error
    except MemoryError as error:
        raise CheckpointError(
            f'checkpoint {path} ({path.stat().st_size} bytes) does not fit into the memory of this machine'
        ) from error
    except _READING_ERRORS as error:
        raise CheckpointError(
            f'checkpoint {path} ({path.stat().st_size} bytes) cannot be read, it is truncated or no checkpoint: '
            f'{_first_line(error)}. Download or copy it again; which files are whole tells `{DOCTOR_COMMAND}`'
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'checkpoint {path} holds a {type(checkpoint).__name__}, wanted a dict of tensors')
    return checkpoint


def _read_verified(path: Path) -> Any:
    verdict = verify(path)
    if not verdict:
        raise EOFError(verdict.reason)
    if path.suffix == '.safetensors':
        return load_file(path)
    survey(path)
    if path.suffix == '.pkl':
        with path.open('rb') as file:
            return _NumpyUnpickler(file).load()
    with torch.serialization.safe_globals(_ALLOWED_GLOBALS):
        return torch.load(path, map_location='cpu', weights_only=True)


def write_atomically(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes a state dict with its digest, so that ``path`` either holds all of it or is what it was before.

    Args:
        state_dict: Names and tensors.
        path: ``.safetensors`` or a torch file by its ending.

    Raises:
        CheckpointError: If the file cannot be written (disk full, folder read-only), or does not fit into memory.
    """
    path = Path(path)
    copied = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    try:
        check_memory(2 * copied)  # more than the file that was read where tensors shared their storage there
    except OversizeError as error:
        raise CheckpointError(f'{path} is not written: its copies take too much; {error}') from error
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in state_dict.items()}
    if path.suffix == '.safetensors':
        content = sign_safetensors(save(tensors, unsigned_metadata()))
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        content = sign_archive(buffer.getvalue())
    try:
        replace_file(path, content)
        remove_abandoned_parts(path.parent)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be written: {error}; what was there before is unchanged') from error


def load_pretrained(
    module: nn.Module, init_cfg: Mapping[str, Any], optional: Collection[str], ignored: tuple[str, ...] = ()
) -> None:
    """Loads ``init_cfg['checkpoint']`` into a module and refuses any gap.

    Args:
        module: Backbone or pyramid.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)``; an optional ``prefix`` selects the entries that begin
            with it.
        optional: Names that may be absent from the file and then keep their initial values.
        ignored: Beginnings of names that the file may have although the module does without them.

    Raises:
        CheckpointError: If a tensor is missing, left over or of another shape; the message lists the names.
    """
    path = init_cfg['checkpoint']
    checkpoint = read_checkpoint(path)
    tensors = unwrap_state_dict(checkpoint)
    prefix = init_cfg.get('prefix')
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        first_words = sorted({name.partition('.')[0] for name in tensors})
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if not tensors:
            raise CheckpointError(
                f'{path} has no tensor whose name begins with init_cfg.prefix={prefix!r}; names begin with '
                f'{first_words}'
            )
    own = module.state_dict()
    mismatch = match_tensors(tensors, own, optional)
    mismatch.unexpected = [name for name in mismatch.unexpected if not name.startswith(ignored)]
    if mismatch.shapes:
        wrong = '; '.join(f'{name}: file {got}, model {wanted}' for name, (got, wanted) in mismatch.shapes.items())
        raise CheckpointError(
            f'{path} does not fit {type(module).__name__}, shapes differ: {wrong}. Set arch, patch_size, '
            'pretrain_img_size (pos_embed) or img_size and window_size (rel_pos) to those of the file'
        )
    if mismatch:
        kinds = [f'{name} {kind}' for name, kind in mismatch.kinds.items()]
        raise CheckpointError(
            f'{path} does not fit {type(module).__name__}. Not in the file: {mismatch.missing or "none"}. Not in the '
            f'model: {mismatch.unexpected or "none"}. Of another kind: {kinds or "none"}. Convert a pre-training '
            f'checkpoint first: {CONVERT_COMMAND}'
        )
    module.load_state_dict(tensors, strict=False)
    kept = sorted({name.rsplit('.', 1)[-1] for name in own.keys() - tensors.keys()})
    print_log(
        f'{type(module).__name__}: {len(own.keys() & tensors.keys())} tensors from {path}'
        + (f', {len(own.keys() - tensors.keys())} keep their initial values ({", ".join(kept)})' if kept else ''),
        logger='current',
    )


class _NumpyUnpickler(PythonUnpickler):
    """Admits numpy arrays and nothing else (detectron2's model files)."""

    ALLOWED: dict[tuple[str, str], Any] = {
        ('numpy', 'ndarray'): np.ndarray,
        ('numpy', 'dtype'): np.dtype,
        ('numpy.core.multiarray', '_reconstruct'): multiarray._reconstruct,
        ('numpy._core.multiarray', '_reconstruct'): multiarray._reconstruct,
        ('numpy.core.numeric', '_frombuffer'): numeric._frombuffer,  # type: ignore[attr-defined]
        ('numpy._core.numeric', '_frombuffer'): numeric._frombuffer,  # type: ignore[attr-defined]
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ('_codecs', 'encode'):  # how protocol 2 writes the bytes of an array
            return _encode_latin1
        try:
            return self.ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f'{module_name}.{global_name} is no part of a numpy array') from None


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'array bytes in encoding {encoding!r}')
    return text.encode('latin1')


def _history_buffer_method(owner: object, name: str) -> Any:
    """Stands for ``getattr`` in mmengine's log buffers, which pickle their four statistics by name."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r})')
    return getattr(HistoryBuffer, name)


_ALLOWED_GLOBALS: list[Any] = [
    argparse.Namespace,
    HistoryBuffer,
    (_history_buffer_method, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    (multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
    (multiarray._reconstruct, 'numpy._core.multiarray._reconstruct'),
    (multiarray.scalar, 'numpy.core.multiarray.scalar'),
    (multiarray.scalar, 'numpy._core.multiarray.scalar'),
    (_encode_latin1, '_codecs.encode'),
    *(
        type(np.dtype(name))
        for name in ('float16', 'float32', 'float64', 'int8', 'int16', 'int32', 'int64', 'uint8', 'bool')
    ),
]


def _refused_object(error: BaseException) -> str:
    """What a refused pickle holds; torch's own message would advise to read the file unsafely."""
    found = re.search(r'Unpickler error:(?: Unsupported \w+:)?(?: GLOBAL)? ([\w.]+)', str(error))
    return f'it holds {found[1]}' if found else _first_line(error).partition('Weights only load failed')[0] or 'unknown'


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = ' '.join(lines[:3]) if lines else type(error).__name__
    return text[:400]
