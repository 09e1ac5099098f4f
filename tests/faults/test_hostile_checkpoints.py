"""Long: files that execute code when they are unpickled, through every tool that reads checkpoints."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_runs import ForkedRun
from mmdet import models  # noqa: F401  (once, not in every child)
from PIL import Image
from running import ROOT, load_tool, write_toy_config

import pretrain.generation
import pretrain.training  # noqa: F401

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='forks')
ADDP_CONFIG = ROOT / 'pretrain/configs/addp_tiny.py'
FORMATS = ('archive.pth', 'legacy.pth', 'pickle.pkl', 'pickle.pth', 'nested.pth', 'named.safetensors')


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.marker,)


def write(path: Path, marker: Path) -> None:
    content: Any = dict(state_dict=dict(weight=Payload(marker)))
    if path.name == 'nested.pth':
        content = dict(state_dict=dict(weight=torch.ones(2)), meta=dict(seed=[1, (2, Payload(marker))]))
    if path.stem in ('pickle', 'named'):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=path.stem != 'legacy')


def commands(file: Path, folder: Path, det_config: Path, image: Path) -> dict[str, tuple[str, ...]]:
    """The tools and their arguments; the checkpoint is ``file``."""
    toy, out = str(folder / 'toy.py'), str(folder / 'out')
    run, small = ('--work-dir', out), ('--out', out)
    return {
        'train, load_from': ('train', toy, *run, '--cfg-options', f'load_from={file}'),
        'train, --resume': ('train', toy, *run, '--resume', str(file)),
        'train, init_cfg': (
            *('train', str(det_config), *run, '--cfg-options', 'model.backbone.init_cfg.type=Pretrained'),
            f'model.backbone.init_cfg.checkpoint={file}',
        ),
        'test': ('test', str(det_config), str(file), *run),
        'predict': ('predict', str(det_config), str(file), str(image), *small),
        'convert': ('convert_checkpoint', str(file), str(folder / 'dst.pth')),
        'convert --whole': ('convert_checkpoint', str(file), str(folder / 'dst.pth'), '--whole'),
        'generate': ('generate', str(ADDP_CONFIG), str(file), '--num-images', '1', *small),
        'edit': ('edit', str(ADDP_CONFIG), str(file), str(image), '--ratio', '0.5', *small),
        'doctor': ('doctor', 'checkpoint', str(file)),
    }


def test_no_tool_executes_what_a_checkpoint_says(tmp_path: Path, tiny_det_config: Path) -> None:
    image, marker = tmp_path / 'image.png', tmp_path / 'executed'
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(image)
    write_toy_config(tmp_path / 'toy.py')
    assert pickle.loads(pickle.dumps(Payload(marker))) is None and marker.exists()  # the payload works
    marker.unlink()
    tried = 0
    for name in FORMATS:
        file = tmp_path / name
        write(file, marker)
        for case, (tool, *words) in commands(file, tmp_path, tiny_det_config, image).items():
            log = tmp_path / f'{name}.{tool}.{tried}.log'
            run = ForkedRun(log, lambda tool=tool, words=words: load_tool(tool).main(words))
            code = run.wait()
            assert not marker.exists(), f'{case} executed {name}'
            assert code == 1 or (tool == 'doctor' and code == 0), f'{case}, {name}: {code}\n{run.output[-3000:]}'
            assert 'Traceback' not in run.output, f'{case}, {name}\n{run.output[-3000:]}'
            tried += 1
    print(f'{tried} tries, nothing executed')
    assert tried == len(FORMATS) * 10
