"""The figures of a training run: what is in them, and that drawing them changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from running import logged_losses
from tiny_addp import IMG_SIZE, TOKENIZER, tiny_batch
from tiny_training import MODELS, PREDICTOR, make_images, random_addp, train, write_leaf

from pretrain.data.figures import grey_out
from pretrain.training.hooks import compose
from pretrain.training.models import TokenizerTraining, TokenPredictorTraining


def columns_of(model, count: int = 2) -> dict[str, torch.Tensor]:
    return model.train().draw_columns(tiny_batch()[0][:count], torch.Generator().manual_seed(0))


def test_every_model_shows_its_input_and_what_it_makes_of_it():
    predictor = TokenPredictorTraining(PREDICTOR, TOKENIZER, IMG_SIZE)
    titles = {
        type(model).__name__: list(columns_of(model))
        for model in (random_addp(), TokenizerTraining(TOKENIZER), predictor)
    }
    assert titles == dict(
        GivenMasks=['input', 'reconstruction', 'mask (0.55 .. 1)', 'noisy image', 'most likely'],
        TokenizerTraining=['input', 'reconstruction'],
        TokenPredictorTraining=['input', 'reconstruction', 'mask (0.55 .. 1)', 'most likely', 'expected'],
    )
    for model in (random_addp(), TokenizerTraining(TOKENIZER), predictor):
        columns = columns_of(model)
        assert all(
            column.shape == (2, 3, IMG_SIZE, IMG_SIZE) and not column.requires_grad for column in columns.values()
        )
        assert torch.equal(columns['input'], tiny_batch()[0][:2])
        assert model.training


def test_the_noisy_image_shows_the_reconstruction_where_nothing_is_masked_nearby():
    model = random_addp()
    columns = columns_of(model, count=1)
    assert not torch.allclose(columns['noisy image'], columns['reconstruction'])
    with torch.no_grad():
        reconstruction = model.addp.tokenizer.decode(model.addp.tokenizer.encode(columns['input']).latents)
    torch.testing.assert_close(columns['reconstruction'], reconstruction, rtol=1e-4, atol=1e-5)


def test_patches_of_masked_tokens_are_grey():
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True  # second row, second column of 4 x 4
    images = torch.zeros(1, 3, 32, 32)
    grey = grey_out(images, mask, (4, 4))
    assert (grey[..., 8:16, 8:16] == 0.5).all() and grey.sum() == 0.5 * 3 * 64


def test_a_figure_has_its_columns_side_by_side_with_clamped_pixels():
    red = torch.zeros(2, 3, 32, 32)
    red[:, 0] = 2.0
    figure = compose({'a': torch.zeros(2, 3, 32, 32), 'b': red})
    assert figure.size == (2 * 96 + 4, 16 + 2 * 96 + 4)  # each enlarged threefold, so that titles can be read
    pixels = np.asarray(figure)
    assert (
        (pixels[16:112, :96] == 0).all()
        and (pixels[116:212, 100:] == (255, 0, 0)).all()
        and (pixels[112:116] == 255).all()
    )


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Work dirs of a tokenizer run with figures and one without."""
    root = tmp_path_factory.mktemp('figures')
    config = write_leaf(
        root, 'tokenizer_tiny', make_images(root / 'images'), MODELS['tokenizer_tiny'], train_cfg=dict(max_iters=3)
    )
    shown = train(config, root / 'with', options=('default_hooks.figure.interval=2',))
    return shown, train(config, root / 'without', options=('default_hooks.figure.interval=0',))


def test_figures_are_saved_at_the_start_at_intervals_and_at_the_end(runs):
    folder = runs[0] / 'figures'
    assert sorted(path.name for path in folder.iterdir()) == [f'iter_{i:06d}.png' for i in (0, 2, 3)]
    first, last = (np.asarray(Image.open(folder / f'iter_{i:06d}.png')).astype(int) for i in (0, 3))
    assert (first[:, :IMG_SIZE] == last[:, :IMG_SIZE]).all()  # the same images
    assert (first != last).any()

    assert not (runs[1] / 'figures').exists()


def test_figures_do_not_change_the_run(runs):
    shown, plain = (logged_losses(folder) for folder in runs)
    assert [shown[i]['loss'] for i in (1, 2, 3)] == [plain[i]['loss'] for i in (1, 2, 3)]
