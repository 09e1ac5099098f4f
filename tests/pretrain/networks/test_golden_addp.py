"""A tiny ADDP against golden values of the published implementation: one test per stage, to locate a break."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain import ADDP
from pretrain.weights import load_published

GOLDEN = Path(__file__).parents[3] / 'tests' / 'golden'
TOLERANCE = 1e-4
GRADIENTS = (
    'blocks.0.attn.qkv.weight',
    'decoder_blocks.1.mlp.fc2.weight',
    'mlm_layer.fc.weight',
    'patch_embed.proj.weight',
    'pos_embed',
    'token_emb.weight',
)


def assert_close(got, wanted):
    """Both in the norm of the difference and in its largest element, relative to the wanted tensor's."""
    assert got.shape == wanted.shape
    got = got.detach()
    assert (got - wanted).norm() <= TOLERANCE * wanted.norm()
    assert (got - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


@pytest.fixture(scope='module')
def golden():
    outputs = load_file(GOLDEN / 'addp_tiny.outputs.safetensors')
    return (
        outputs
        | {name: outputs[name].bool() for name in ('mask', 'mask_next')}
        | {'token_ids': outputs['token_ids'].long()}
    )


@pytest.fixture(scope='module')
def model():
    config = json.loads((GOLDEN / 'addp_tiny.json').read_text())['config']

    def split(sizes):
        arch = {name: sizes[name] for name in ('width', 'depth', 'num_heads')}
        return dict(arch=arch, decoder_depth=sizes['decoder_depth'], decoder_num_heads=sizes['decoder_num_heads'])

    model = ADDP(
        **split(config),
        img_size=config['img_size'],
        patch_size=config['patch_size'],
        tokenizer=config['tokenizer'],
        token_predictor=split(config['token_predictor']),
    )
    report = load_published(model, load_file(GOLDEN / 'addp_tiny.weights.safetensors'))
    assert not report.absent
    return model.eval()


@pytest.fixture(scope='module')
def sample(model, golden):
    return model.diffuse(golden['image'], golden['mask'], golden['mask_next'])


@pytest.fixture(scope='module')
def loss(model, sample, golden):
    loss = model.masked_loss(sample, golden['mask'])
    loss.backward()
    return loss


def mixed_latents(golden, grid):
    return torch.where(golden['mask'].unflatten(1, grid)[:, None], golden['unreliable_embedding'], golden['z0'])


def test_the_tokenizer_finds_the_golden_token_ids(model, golden):
    assert torch.equal(model.tokenizer.encode(golden['image']).tokens, golden['token_ids'])


def test_the_tokenizers_latents_equal_golden_z0(model, golden):
    assert_close(model.tokenizer.lookup(golden['token_ids'], model.grid), golden['z0'])


def test_encode_returns_the_latents_of_its_tokens(model, golden):
    assert_close(model.tokenizer.encode(golden['image'])[1], golden['z0'])


def test_decoding_z0_gives_the_golden_reconstruction(model, golden):
    assert_close(model.tokenizer.decode(golden['z0'])[:, :, ::4, ::4], golden['reconstruction'])


def test_the_predictor_at_the_noisier_mask_gives_the_golden_unreliable_embedding(model, golden):
    probs = model.token_predictor(golden['token_ids'], golden['mask_next'])
    assert_close(model.tokenizer.soft_latents(probs, model.grid), golden['unreliable_embedding'])


def test_the_predictor_at_the_mask_gives_the_golden_target(model, golden):
    probs = model.token_predictor(golden['token_ids'], golden['mask'])
    assert_close(probs.transpose(1, 2).unflatten(2, model.grid)[:, ::4], golden['target_probs'])


def test_decoding_the_mixed_latents_gives_golden_x_t(model, golden):
    assert_close(model.tokenizer.decode(mixed_latents(golden, model.grid))[:, :, ::4, ::4], golden['x_t'])


def test_diffuse_gives_the_golden_tokens_target_and_noisy_images(model, sample, golden):
    assert torch.equal(sample.tokens, golden['token_ids'])
    assert_close(sample.target.transpose(1, 2).unflatten(2, model.grid)[:, ::4], golden['target_probs'])
    assert_close(sample.noisy_images[:, :, ::4, ::4], golden['x_t'])


def test_embedding_x_t_gives_the_golden_encoder_input(model, golden):
    pixels = model.tokenizer.decode(mixed_latents(golden, model.grid))
    assert_close(model.embed_pixels(pixels), golden['encoder_input'])


def test_blocks_and_norm_give_the_golden_encoder_output(model, golden):
    assert_close(model.norm(model.blocks(golden['encoder_input'])), golden['encoder_output'])


def test_the_decoder_gives_the_golden_logits(model, golden):
    logits = model.score_vocabulary(golden['encoder_output'], golden['token_ids'], golden['mask'])
    assert logits.shape == (2, 256, 2025)
    assert_close(logits[..., :1024][:, ::4, ::4], golden['logits'])


def test_predict_logits_goes_from_pixels_to_the_golden_logits(model, sample, golden):
    with torch.no_grad():
        logits = model.predict_logits(sample.noisy_images, sample.tokens, golden['mask'])
    assert_close(logits[:, ::4, ::4], golden['logits'])


def test_the_first_generation_step_has_the_golden_logits_whatever_the_image(model, golden):
    everything = torch.ones(2, 256, dtype=torch.bool)
    for image in (torch.zeros(2, 3, 256, 256), golden['image']):
        with torch.no_grad():
            logits = model.predict_logits(image, golden['token_ids'], everything)
        assert_close(logits[:, ::4, ::4], golden['step0.logits'])


def test_the_loss_equals_the_golden_loss(loss, golden):
    assert_close(loss[None], golden['loss'])


@pytest.mark.parametrize('name', GRADIENTS)
def test_the_gradient_equals_the_golden_gradient_of(name, model, loss, golden):
    gradient = model.get_parameter(name).grad
    if name == 'token_emb.weight':
        gradient = gradient[:1024][::4]
    assert_close(gradient, golden[f'grad.{name}'])


def test_every_golden_gradient_is_tested(golden):
    assert {f'grad.{name}' for name in GRADIENTS} == {name for name in golden if name.startswith('grad.')}
