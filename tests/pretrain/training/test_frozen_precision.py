"""``frozen_dtype='auto'``: 16 bits where the tokens allow it, one choice for a whole run, nothing on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.logging import MessageHub
from tiny_addp import tiny_batch
from tiny_training import random_addp

from pretrain.networks import frozen
from pretrain.networks.frozen import choose_precision
from pretrain.training import frozen_precision, models
from pretrain.training.frozen_precision import INFO_KEY


@pytest.fixture(autouse=True)
def _empty_hub(request: pytest.FixtureRequest) -> None:
    MessageHub.get_instance(f'frozen-{request.node.name}')  # the current one from now on


@pytest.fixture
def half_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, 'has_half_precision', lambda device: True)


def accept(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(frozen, 'MIN_EQUAL_TOKENS', share)


def test_on_a_cpu_the_frozen_networks_stay_as_without_the_option() -> None:
    images = tiny_batch(4)[0]
    losses = []
    for option in ('auto', None):
        model = random_addp(frozen_dtype=option).train()
        torch.manual_seed(1)
        losses.append(model(images)['loss'])
    assert model.addp.frozen_dtype is None and torch.equal(*losses)


def test_shares_are_those_of_comparing_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    accept(monkeypatch, 2.0)
    tokenizer = random_addp().addp.tokenizer
    images = tiny_batch(4)[0]
    choice = choose_precision(tokenizer, images)
    assert choice.dtype == torch.float32 and tokenizer.encoder.conv_in.weight.dtype == torch.float32
    for dtype, share in choice.shares.items():
        half = copy.deepcopy(tokenizer)
        half.set_precision(dtype)
        with torch.no_grad():
            pairs = zip(half.encode(images).tokens.flatten(), tokenizer.encode(images).tokens.flatten(), strict=True)
            equal = [int(a) == int(b) for a, b in pairs]
        assert share == pytest.approx(sum(equal) / len(equal))


@pytest.mark.usefixtures('half_everywhere')
@pytest.mark.parametrize(('share', 'dtype'), [(0.0, torch.float16), (2.0, torch.float32)], ids=['half', 'float32'])
def test_the_first_batch_decides(monkeypatch: pytest.MonkeyPatch, share: float, dtype: torch.dtype) -> None:
    accept(monkeypatch, share)
    model = random_addp(frozen_dtype='auto').train()
    assert torch.isfinite(model(tiny_batch(4)[0])['loss'])
    assert model.addp.frozen_dtype == dtype and model.addp.token_predictor.norm.weight.dtype == dtype
    accept(monkeypatch, 1.0 - share)
    model(tiny_batch(4)[0])
    assert model.addp.frozen_dtype == dtype  # the second does not


@pytest.mark.usefixtures('half_everywhere')
def test_float16_that_overflows_gives_way_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    accept(monkeypatch, 0.0)
    model = random_addp(frozen_dtype='auto').train()
    with torch.no_grad():
        model.addp.tokenizer.decoder.conv_out.weight.mul_(1e9)
    model(tiny_batch(4)[0])
    assert model.addp.frozen_dtype == torch.bfloat16


@pytest.mark.usefixtures('half_everywhere')
def test_a_resumed_run_keeps_the_choice_in_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_precision, 'choose_precision', pytest.fail)
    hub = MessageHub.get_current_instance()
    hub.update_info(INFO_KEY, 'bf16')
    assert INFO_KEY in hub.state_dict()['runtime_info']
    model = random_addp(frozen_dtype='auto').train()
    model(tiny_batch(4)[0])
    assert model.addp.frozen_dtype == torch.bfloat16
