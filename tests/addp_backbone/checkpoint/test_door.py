"""Importing addp_backbone leaves mmengine one way to read checkpoints, in our tools and in the stock ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint
from running import toy_config, train_toy
from torch import nn

import addp_backbone  # noqa: F401  (closes the unsafe ways)
from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.locate import find_checkpoint
from addp_backbone.checkpoint.storage import read_checkpoint

SCHEMES = ('openmmlab', 'open-mmlab', 'mmcls', 'torchvision', 'modelzoo', 's3', 'pavi', 'petrel', 'http', 'https')


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize('scheme', [*SCHEMES, 'HTTPS', 'ftp', 'file', 'open-mmlab:s3', 'made+up'])
def test_every_scheme_known_or_not_is_refused_with_the_safe_ways(scheme: str) -> None:
    source = f'{scheme}://resnet50'
    for read in (
        CheckpointLoader.load_checkpoint,
        read_checkpoint,
        find_checkpoint,
        lambda s: read_checkpoint(Path(s)),
    ):
        with pytest.raises(CheckpointError, match=r'is refused.*Safe ways: the path of a local file'):
            read(source)


@pytest.mark.long
def test_a_pickle_in_the_cache_of_a_scheme_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    for folder in ('checkpoints', 'hub/checkpoints'):
        (tmp_path / folder).mkdir(parents=True)
        torch.save(dict(state_dict=Touch(tmp_path / 'executed')), tmp_path / folder / 'x')
    for scheme in SCHEMES:
        with pytest.raises(CheckpointError, match='is refused'):
            train_toy(toy_config(tmp_path / 'run', load_from=f'{scheme}://x'))
    assert not (tmp_path / 'executed').exists()


def test_mmengines_own_function_reads_safely_and_finds_a_state_dict_under_another_name(tmp_path: Path) -> None:
    torch.save(dict(model=dict(weight=torch.ones(1, 1), bias=torch.ones(1)), epoch=1), tmp_path / 'a.pth')
    layer = nn.Linear(1, 1)
    load_checkpoint(layer, str(tmp_path / 'a.pth'))
    assert layer.weight.item() == layer.bias.item() == 1
    torch.save(dict(state_dict=Touch(tmp_path / 'executed')), tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='would execute code'):
        load_checkpoint(layer, str(tmp_path / 'evil.pth'))
    assert not (tmp_path / 'executed').exists()


def test_the_config_text_in_a_checkpoint_is_not_executed_on_resume(tmp_path: Path) -> None:
    train_toy(toy_config(tmp_path / 'run'))
    path = tmp_path / 'run' / 'iter_6.pth'
    checkpoint = read_checkpoint(path)
    checkpoint['meta']['config'] = f'import pathlib\npathlib.Path({str(tmp_path / "executed")!r}).touch()\n'
    torch.save(checkpoint, path)
    train_toy(toy_config(tmp_path / 'run', **{'train_cfg.max_iters': 7}), resume='auto')
    assert not (tmp_path / 'executed').exists()
