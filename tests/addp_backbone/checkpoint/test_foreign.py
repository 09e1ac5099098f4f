"""Files given as checkpoints that are something else are called what they are, with what to do."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from addp_backbone.checkpoint import CheckpointError, read_checkpoint


def write_script(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme.txt', 'weights are elsewhere')


def write_npz(path: Path) -> None:
    with path.open('wb') as file:
        np.savez(file, a=np.zeros(3))


FOREIGN = {
    'Git LFS': (
        lambda path: path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n'),
        'a Git LFS pointer.*git lfs pull',
    ),
    'HTML': (lambda path: path.write_text('\n<!DOCTYPE html><html>log in</html>'), 'a web page.*download it again'),
    'XML': (lambda path: path.write_text('<?xml version="1.0"?><Error/>'), 'XML text'),
    'JSON': (lambda path: path.write_text(json.dumps(dict(a=1))), 'JSON text'),
    'JSON with a byte order mark': (lambda path: path.write_text('[1]', encoding='utf-8-sig'), 'JSON text'),
    'npy': (lambda path: np.save(path.open('wb'), np.zeros(3)), r'a numpy array \(.npy\)'),
    'npz': (write_npz, r'a numpy archive \(.npz\)'),
    'TorchScript': (write_script, 'a TorchScript archive, which is a program'),
    'ONNX': (lambda path: path.write_bytes(b'\x08\x08\x12\x07pytorch\x1a\x052.0.0:\x01onnx'), 'an ONNX graph'),
    'gzip': (lambda path: path.write_bytes(b'\x1f\x8b\x08\x00rest'), 'gzip-compressed'),
    'another zip': (write_zip, 'a zip archive that holds no torch file'),
    'safetensors': (lambda path: save_file(dict(a=torch.zeros(2)), path), 'a safetensors file.*ending .safetensors'),
}


@pytest.mark.parametrize('kind', FOREIGN)
@pytest.mark.filterwarnings('ignore')
def test_a_foreign_file_is_called_what_it_is(kind, tmp_path):
    path = tmp_path / 'model.pth'
    write, message = FOREIGN[kind]
    write(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert 'weights_only' not in str(caught.value) and 'execute' not in str(caught.value)


def test_checkpoints_are_none_of_them(tmp_path):
    torch.save(dict(a=torch.ones(2)), tmp_path / 'new.pth')
    torch.save(dict(a=torch.ones(2)), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    save_file(dict(a=torch.ones(2)), tmp_path / 'file.safetensors')
    for path in tmp_path.iterdir():
        assert torch.equal(read_checkpoint(path)['a'], torch.ones(2))


def test_a_refused_object_is_named_without_the_advice_to_read_the_file_unsafely(tmp_path):
    torch.save({'state_dict': {}, 'hyper_parameters': {'a': tmp_path}}, tmp_path / 'lightning.ckpt')
    with pytest.raises(CheckpointError, match='it holds pathlib') as caught:
        read_checkpoint(tmp_path / 'lightning.ckpt')
    assert 'weights_only' not in str(caught.value) and 'Weights only' not in str(caught.value)


def test_a_folder_is_called_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match='is a folder'):
        read_checkpoint(tmp_path)
