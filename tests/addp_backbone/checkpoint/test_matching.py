"""The strict match of names, shapes and kinds of numbers; finding the state dict and the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.locate import find_checkpoint
from addp_backbone.checkpoint.matching import (
    load_strictly,
    match_tensors,
    split_checkpoint,
    unwrap_state_dict,
)
from addp_backbone.runtime.launch import set_resume

WANTED = {'w': torch.zeros(2, 3), 'b': torch.zeros(3), 'count': torch.zeros((), dtype=torch.long)}


def test_equal_names_and_shapes_match_in_any_precision_and_as_arrays() -> None:
    given = {
        'b': torch.zeros(3, dtype=torch.bfloat16),
        'w': np.zeros((2, 3)),
        'count': torch.ones((), dtype=torch.int32),
    }
    assert not match_tensors(given, WANTED)


def test_every_difference_is_named_with_what_was_found_and_wanted() -> None:
    given = {'w': torch.zeros(3, 2), 'count': torch.zeros(()), 'extra': torch.zeros(1), 'b': 'text'}
    mismatch = match_tensors(given, {**WANTED, 'gone': (4,)})
    assert (mismatch.missing, mismatch.unexpected, mismatch.shapes) == (['gone'], ['extra'], {'w': ((3, 2), (2, 3))})
    assert mismatch.kinds == {
        'b': 'is a str, wanted a tensor',
        'count': 'holds torch.float32, wanted torch.int64',
    }
    assert match_tensors({}, WANTED, optional=WANTED) == match_tensors(WANTED, WANTED)
    assert next(iter(mismatch.lines('net.'))) == 'net.gone is missing'
    assert 'Missing: gone. Unknown to the model: extra. Of another shape: w (3, 2) instead of (2, 3)' in str(mismatch)


@pytest.mark.parametrize('kind', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_a_difference_and_a_sum_beyond_the_range_is_none(kind: torch.dtype) -> None:
    for value in (float('nan'), float('inf'), float('-inf')):
        tensor = torch.zeros(3, dtype=kind)
        tensor[1] = value
        found = match_tensors({**WANTED, 'b': tensor}, WANTED)
        assert found.kinds == {'b': 'holds values that are not finite'}
    assert not match_tensors({**WANTED, 'b': torch.full((3,), torch.finfo(kind).max, dtype=kind)}, WANTED)
    assert match_tensors({**WANTED, 'b': np.array([0, np.nan, 0])}, WANTED).kinds


def test_tensors_without_values_do_not_match() -> None:
    empty = torch.empty(3, device='meta')
    assert match_tensors({**WANTED, 'b': empty}, WANTED).kinds == {'b': 'has a shape but no values (device meta)'}
    assert not match_tensors({**WANTED, 'b': empty}, {**WANTED, 'b': empty})


def test_names_that_are_no_text_are_refused() -> None:
    with pytest.raises(CheckpointError, match='an entry is called 5'):
        unwrap_state_dict({'model': {'w': torch.zeros(1), 5: torch.zeros(1)}})


def test_a_long_list_of_names_is_cut_with_their_number() -> None:
    assert 'w9 and 15 more' in str(match_tensors({}, {f'w{i}': (1,) for i in range(25)}))


def test_nothing_is_loaded_unless_everything_fits() -> None:
    layer = nn.Linear(2, 2)
    before = layer.weight.clone()
    with pytest.raises(CheckpointError, match=r'a\.pth does not fit Linear.*Missing: bias.*Use another'):
        load_strictly(layer, {'weight': torch.ones(2, 2)}, 'a.pth', 'Use another')
    assert torch.equal(layer.weight, before)
    load_strictly(layer, {'weight': torch.ones(2, 2), 'bias': torch.ones(2)}, 'a.pth', 'Use another')
    assert layer.weight.eq(1).all() and layer.bias.eq(1).all()


def test_the_state_dict_is_found_at_any_depth_and_what_lies_beside_it_is_kept() -> None:
    tensors = {'w': torch.zeros(1)}
    assert unwrap_state_dict(tensors) is tensors
    nested = {'epoch': 3, 'model': {'state_dict': tensors, 'note': 'x'}}
    assert split_checkpoint(nested) == (tensors, {'epoch': 3, 'note': 'x'})
    with pytest.raises(CheckpointError, match='both "model" and "state_dict"'):
        unwrap_state_dict({'model': tensors, 'state_dict': tensors})
    with pytest.raises(CheckpointError, match=r"no tensors found.*\['epoch'\]"):
        unwrap_state_dict({'epoch': 3})


def test_a_work_dir_stands_for_its_latest_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r'CKPT .*holds no checkpoint iter_.*; train first'):
        find_checkpoint(tmp_path, 'CKPT', 'train first')
    torch.save(WANTED, tmp_path / 'epoch_1.pth')
    assert find_checkpoint(tmp_path) == find_checkpoint(tmp_path / 'epoch_1.pth') == tmp_path / 'epoch_1.pth'
    with pytest.raises(CheckpointError, match=r'CKPT .*nix\.pth does not exist; train first'):
        find_checkpoint(tmp_path / 'nix.pth', 'CKPT', 'train first')
    cfg = Config(dict(work_dir=str(tmp_path / 'new')))
    set_resume(cfg, str(tmp_path))
    assert cfg.load_from == str(tmp_path / 'epoch_1.pth')
