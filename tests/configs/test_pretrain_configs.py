"""The pre-training configs: every one builds and trains at tiny size, and says what the reference says."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from stopping import stopped_after
from tiny_addp import TOKENIZER
from tiny_training import CONFIGS, NETWORK, PREDICTOR, make_images, train, write_leaf

import pretrain.training.models  # noqa: F401  (registers the models)

EPOCHS = dict(
    addp_base_1600e=1600,
    addp_base_1600e_ema=1600,
    addp_large_800e=800,
    token_predictor_base_1600e=1600,
    token_predictor_large_1600e=1600,
    tokenizer_base=100,
)
MILLION_PARAMETERS = dict(addp_base_1600e=146, addp_large_800e=409)


def tiny_model(name: str) -> dict:
    """What makes the model of a config small, with random frozen networks."""
    if name.startswith('addp'):
        return dict(network=NETWORK, init_cfg=dict(tokenizer='random', token_predictor='random'))
    if name.startswith('token_predictor'):
        return dict(token_predictor=PREDICTOR, tokenizer=TOKENIZER, img_size=32, init_cfg=dict(tokenizer='random'))
    return dict(tokenizer=TOKENIZER, objective=dict(discriminator=dict(base_channels=8, num_layers=1)))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder of images."""
    return make_images(tmp_path_factory.mktemp('data') / 'images')


@pytest.mark.parametrize('name', EPOCHS)
def test_every_config_trains_at_tiny_size(images, tmp_path, name):
    config = write_leaf(tmp_path, name, images, tiny_model(name))
    work_dir = train(config, tmp_path / 'run', options=stopped_after(1))
    checkpoint = torch.load(work_dir / 'iter_1.pth', weights_only=False)
    assert ('ema_state_dict' in checkpoint) == name.endswith('ema')
    scheduler = checkpoint['param_schedulers'][-1]
    assert scheduler['end'] == EPOCHS[name] * 4  # ten images, batch 3
    assert checkpoint['optimizer']['base_param_settings']['initial_lr'] == pytest.approx(
        {'addp': 1e-4, 'token_predictor': 1.5e-4, 'tokenizer': 1e-4}[name.split('_base')[0].split('_large')[0]]
        * 3
        / 256
    )


@pytest.mark.parametrize(
    ('name', 'interpolation'),
    [
        ('addp_base_1600e', 'bicubic'),
        ('token_predictor_base_1600e', 'bilinear'),
        ('token_predictor_large_1600e', 'bilinear'),
    ],
)
def test_crops_are_interpolated_as_in_the_source_of_the_network(name, interpolation):
    steps = Config.fromfile(CONFIGS / f'{name}.py').train_dataloader.dataset.pipeline
    assert [step.interpolation for step in steps if step.type == 'RandomResizedCropImage'] == [interpolation]
    assert [step.type for step in steps] == [
        'SeedAugmentation',
        'RandomResizedCropImage',
        'RandomFlipImage',
        'PackImage',
    ]


@pytest.mark.parametrize('name', ['addp_base_1600e', 'addp_large_800e'])
def test_the_predictors_dropout_is_on_as_in_the_published_trainer(name):
    assert Config.fromfile(CONFIGS / f'{name}.py').model.network.predictor_dropout is True


@pytest.mark.parametrize('name', ['addp_base_1600e', 'addp_large_800e'])
def test_the_recipe_is_the_published_one(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, tuple(optimizer.betas), optimizer.weight_decay) == (
        'AdamW',
        1e-4,
        (0.9, 0.95),
        0.05,
    )
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=256) and cfg.optim_wrapper.clip_grad.max_norm == 3.0
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.train_cfg.max_epochs == EPOCHS[name]
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.end, cosine.begin, cosine.eta_min) == (40, 40, 0.0) and 'end' not in cosine
    crop = cfg.train_dataloader.dataset.pipeline[1]
    assert (crop.type, crop.size, tuple(crop.scale), crop.interpolation) == (
        'RandomResizedCropImage',
        256,
        (0.2, 1.0),
        'bicubic',
    )


@pytest.mark.parametrize('name', MILLION_PARAMETERS)
def test_the_full_size_model_builds(name):
    with torch.device('meta'):
        model = MODELS.build(Config.fromfile(CONFIGS / f'{name}.py').model)
    assert model.addp.num_tokens == 256 and model.addp.tokenizer.num_codes == 1024
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert round(trained / 1e6) == MILLION_PARAMETERS[name]


@pytest.mark.parametrize('name', ['tokenizer_tiny', 'token_predictor_tiny', 'addp_tiny'])
def test_the_tiny_configs_share_their_networks(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    network = cfg.model.get('network', cfg.model)
    assert network.tokenizer == cfg.tokenizer
    assert name == 'tokenizer_tiny' or network.token_predictor == cfg.token_predictor
