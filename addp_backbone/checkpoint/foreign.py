"""Files that are given as checkpoints and are something else: what they are, and what to do about it."""

from __future__ import annotations

import zipfile
from pathlib import Path

_HEAD_BYTES = 512
# (what a file begins with, what it is and what to do), after blanks; letters in lower case.
_TEXT_STARTS = (
    (
        b'version https://git-lfs',
        'a Git LFS pointer of a few lines instead of the file: run `git lfs pull`, or download it',
    ),
    (b'<!doctype', 'a web page, often what a log-in or a wrong link gives instead of the file: download it again'),
    (b'<html', 'a web page, often what a log-in or a wrong link gives instead of the file: download it again'),
    (b'<?xml', 'XML text, often the error message of a storage service: download the file again'),
    (b'{', 'JSON text: the weights are in another file beside it'),
    (b'[', 'JSON text: the weights are in another file beside it'),
)
_STARTS = (
    (b'\x93NUMPY', 'a numpy array (.npy), which names no tensors: save a dict of them'),
    (b'\x89HDF', 'an HDF5 file (Keras): convert it to a dict of torch tensors'),
    (b'\x1f\x8b', 'gzip-compressed: unpack it first'),
    (b'BZh', 'bzip2-compressed: unpack it first'),
    (b'\xfd7zXZ', 'xz-compressed: unpack it first'),
    (b'\x89PNG', 'a PNG image'),
    (b'\xff\xd8\xff', 'a JPEG image'),
    (b'%PDF', 'a PDF document'),
)


def foreign_kind(path: Path) -> str | None:
    """What a file is if it is no checkpoint of a kind that can be read; None if it may be one.

    Args:
        path: An existing file.

    Returns:
        The end of a sentence that begins with "it is".
    """
    with path.open('rb') as file:
        head = file.read(_HEAD_BYTES)
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    is_safetensors = len(head) > 8 and head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < path.stat().st_size
    if is_safetensors:
        return None if path.suffix == '.safetensors' else 'a safetensors file: give its name the ending .safetensors'
    for start, kind in (*_TEXT_STARTS, *_STARTS):
        if text.startswith(start.lower()):
            return kind
    if path.suffix == '.onnx' or (head[:1] == b'\x08' and b'pytorch' in head[:64] and b'onnx' in head):
        return 'an ONNX graph: its weights have lost the names of layers; give the checkpoint that it was exported from'
    return _kind_of_archive(path) if head.startswith(b'PK\x03\x04') else None


def _kind_of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition('/')[2] or name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError):
        return None  # damaged; reading it says so
    if any(name == 'constants.pkl' or name.startswith('code/') for name in names):
        return 'a TorchScript archive, which is a program: save the state dict of the model that it was made from'
    if names and all(name.endswith('.npy') for name in names):
        return 'a numpy archive (.npz): save its arrays as a dict of torch tensors, or as .safetensors'
    return None if 'data.pkl' in names else 'a zip archive that holds no torch file: unpack it first'
