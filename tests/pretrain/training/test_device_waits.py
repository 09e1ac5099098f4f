"""A training step keeps a GPU's queue filled: from the images on the CPU to the gradients nothing waits for it."""

from __future__ import annotations

import pytest
import torch
from tiny_addp import TOKENIZER, tiny_batch
from tiny_training import IMG_SIZE, PREDICTOR, random_addp

from pretrain.data.batches import stack_images
from pretrain.networks.mask_schedule import true_indices
from pretrain.training.models import TokenizerTraining, TokenPredictorTraining, TrainingModel
from pretrain.training.tokenizer_objective import PatchDiscriminator
from tools.benchmark.device_ops import DeviceOps

LATE = dict(adversarial_weight=0.5, adversarial_start_iters=9, discriminator=dict(base_channels=8, num_layers=1))


def batch() -> dict:
    return stack_images([dict(inputs=image * 255, data_samples=None) for image in tiny_batch(4)[0]])


def step(model: TrainingModel) -> None:
    data = model.data_preprocessor(batch(), training=True)
    losses = model(**data)
    sum(value for name, value in losses.items() if 'loss' in name).backward()


@pytest.mark.parametrize('name', ['addp', 'token_predictor', 'tokenizer'])
def test_a_step_does_not_wait_for_the_device(name: str) -> None:
    torch.manual_seed(0)
    model: TrainingModel
    if name == 'addp':
        model = random_addp(token_dropout=0.5)
    elif name == 'token_predictor':
        model = TokenPredictorTraining(PREDICTOR, TOKENIZER, IMG_SIZE)
    else:
        model = TokenizerTraining(TOKENIZER, dict(LATE))
    model.train()
    step(model)  # the first one may ask how far the tokenizer's training has come
    ops = DeviceOps([*model.parameters(), *model.buffers()])
    with ops:
        step(model)
    assert ops.num_ops > 100 and ops.num_copies >= 1
    assert not ops.waits


def test_indices_of_a_known_number_are_those_of_a_counted_one() -> None:
    mask = torch.rand(5, 40).argsort(1).argsort(1) < 13
    assert torch.equal(true_indices(mask, 13), true_indices(mask))
    assert torch.equal(true_indices(mask), mask.nonzero()[:, 1].view(5, 13))


def test_before_the_adversarial_term_starts_the_discriminator_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TokenizerTraining(TOKENIZER, dict(LATE)).train()
    monkeypatch.setattr(PatchDiscriminator, 'forward', pytest.fail)
    step(model)
    parameters = model.objective.discriminator.parameters()  # type: ignore[union-attr]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in parameters)


def test_the_tokenizers_iteration_is_read_anew_after_loading_a_checkpoint() -> None:
    model = TokenizerTraining(TOKENIZER, dict(LATE)).train()
    step(model)
    later = TokenizerTraining(TOKENIZER, dict(LATE))
    later.num_iters.fill_(9)
    model.load_state_dict(later.state_dict())
    losses = model(**model.data_preprocessor(batch(), training=True))
    assert losses['loss_discriminator'].item() > 0
