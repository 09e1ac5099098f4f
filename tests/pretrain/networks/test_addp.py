"""ADDP's properties: what the result may depend on, what is frozen, what a checkpoint holds, and precision."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from tiny_addp import ARCH, NUM_CODES, NUM_TOKENS, TOKENIZER, tiny_addp, tiny_batch

from addp_backbone.networks.arch import get_arch
from pretrain import ADDP


@pytest.fixture(scope='module')
def model():
    return tiny_addp()


@pytest.fixture(scope='module')
def batch():
    return tiny_batch()


@pytest.fixture(scope='module')
def sample(model, batch):
    return model.diffuse(*batch)


def frozen_parameters(model):
    return {
        **{f'tokenizer.{name}': value for name, value in model.tokenizer.named_parameters()},
        **{f'token_predictor.{name}': value for name, value in model.token_predictor.named_parameters()},
    }


def test_diffuse_returns_tokens_images_and_targets_of_the_promised_shapes(sample):
    assert sample.tokens.shape == (3, NUM_TOKENS) and sample.tokens.dtype == torch.int64
    assert sample.noisy_images.shape == (3, 3, 32, 32)
    assert sample.target.shape == (3, NUM_TOKENS, NUM_CODES)


def test_target_rows_sum_to_one(sample):
    assert (sample.target >= 0).all()
    torch.testing.assert_close(sample.target.sum(-1), torch.ones(3, NUM_TOKENS))


def test_nothing_masked_makes_the_noisy_image_the_reconstruction(model, batch):
    images, mask, noisier_mask = batch
    expected = model.tokenizer.decode(model.tokenizer.encode(images).latents)
    noisy = model.diffuse(images, torch.zeros_like(mask), noisier_mask).noisy_images
    torch.testing.assert_close(noisy, expected, rtol=1e-4, atol=1e-5)


def test_the_target_comes_from_the_mask_and_the_noisy_image_from_the_noisier_one(model, batch, sample):
    images, mask, _ = batch
    torch.testing.assert_close(sample.target, model.token_predictor(sample.tokens, mask))
    less_noisy = model.diffuse(images, mask, mask)
    torch.testing.assert_close(less_noisy.target, sample.target)
    assert not torch.allclose(less_noisy.noisy_images, sample.noisy_images)


def test_logits_do_not_depend_on_tokens_under_the_mask(model, batch, sample):
    mask = batch[1]
    changed = torch.where(mask, (sample.tokens + 5) % NUM_CODES, sample.tokens)
    logits = model.predict_logits(sample.noisy_images, sample.tokens, mask)
    assert logits.shape == (3, NUM_TOKENS, NUM_CODES)
    assert torch.equal(model.predict_logits(sample.noisy_images, changed, mask), logits)


def test_logits_depend_on_visible_tokens_and_on_pixels(model, batch, sample):
    mask = batch[1]
    logits = model.predict_logits(sample.noisy_images, sample.tokens, mask)
    other_tokens = torch.where(mask, sample.tokens, (sample.tokens + 5) % NUM_CODES)
    assert not torch.allclose(model.predict_logits(sample.noisy_images, other_tokens, mask), logits)
    assert not torch.allclose(model.predict_logits(sample.noisy_images.flip(-1), sample.tokens, mask), logits)


def test_pixels_do_not_matter_where_everything_is_masked(model, sample):
    everything = torch.ones(3, NUM_TOKENS, dtype=torch.bool)
    blank = model.predict_logits(torch.zeros_like(sample.noisy_images), sample.tokens, everything)
    assert torch.equal(model.predict_logits(sample.noisy_images, sample.tokens, everything), blank)


def test_pixels_are_clamped_to_the_unit_interval(model, batch, sample):
    mask = batch[1]
    wild = sample.noisy_images * 4 - 2
    torch.testing.assert_close(
        model.predict_logits(wild, sample.tokens, mask), model.predict_logits(wild.clamp(0, 1), sample.tokens, mask)
    )


def test_the_loss_does_not_depend_on_the_target_of_unmasked_tokens(model, batch, sample):
    mask = batch[1]
    other = torch.where(mask[..., None], sample.target, sample.target.flip(-1))
    assert torch.equal(model.masked_loss(sample._replace(target=other), mask), model.masked_loss(sample, mask))


def test_the_loss_depends_on_the_target_at_masked_tokens(model, batch, sample):
    other = sample._replace(target=sample.target.flip(-1))
    assert not torch.allclose(model.masked_loss(other, batch[1]), model.masked_loss(sample, batch[1]))


def test_permuting_the_batch_permutes_the_logits_and_keeps_the_loss(model, batch, sample):
    order = torch.tensor([2, 0, 1])
    permuted = [tensor[order] for tensor in batch]
    logits = model.predict_logits(sample.noisy_images, sample.tokens, batch[1])
    moved = model.predict_logits(sample.noisy_images[order], sample.tokens[order], permuted[1])
    torch.testing.assert_close(moved, logits[order])
    torch.testing.assert_close(model(*permuted), model(*batch))


def test_rows_with_different_numbers_of_masked_tokens_are_refused(model, batch, sample):
    uneven = batch[1].clone()
    uneven[0] = True
    with pytest.raises(ValueError, match='same number of masked tokens'):
        model.predict_logits(sample.noisy_images, sample.tokens, uneven)


def test_training_changes_every_trained_parameter_and_no_frozen_one(batch):
    model = tiny_addp().train()
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    model(*batch).backward()
    optimizer.step()
    frozen = frozen_parameters(model)
    assert all(parameter.grad is None and torch.equal(parameter, before[name]) for name, parameter in frozen.items())
    trained = [name for name in before if name not in frozen]
    assert trained and all(not torch.equal(model.get_parameter(name), before[name]) for name in trained)


def test_a_few_steps_lower_the_loss(batch):
    model = tiny_addp()
    sample = model.diffuse(*batch)
    optimizer = torch.optim.AdamW((parameter for parameter in model.parameters() if parameter.requires_grad), 3e-3)
    losses = []
    for _ in range(20):
        loss = model.masked_loss(sample, batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.4


def test_train_mode_leaves_the_frozen_networks_in_eval_mode(batch):
    model = tiny_addp().train()
    assert model.training and model.blocks[0].training
    assert not any(
        module.training for frozen in (model.tokenizer, model.token_predictor) for module in frozen.modules()
    )
    assert torch.equal(model.diffuse(*batch).target, model.diffuse(*batch).target)


def test_a_fresh_model_has_its_frozen_networks_in_eval_mode():
    model = ADDP(
        arch=ARCH,
        decoder_depth=1,
        decoder_num_heads=4,
        img_size=32,
        patch_size=8,
        tokenizer=TOKENIZER,
        token_predictor=dict(arch=ARCH, decoder_depth=1, decoder_num_heads=4),
    )
    assert not model.tokenizer.training and not model.token_predictor.training


def test_predictor_dropout_is_an_option_and_acts_in_train_mode_only(batch):
    model = tiny_addp(predictor_dropout=True)
    assert torch.equal(model.diffuse(*batch).target, model.diffuse(*batch).target)
    model.train()
    assert not torch.equal(model.diffuse(*batch).target, model.diffuse(*batch).target)
    assert not model.tokenizer.training


def test_hidden_tokens_leave_the_loss_to_the_pixels_in_train_mode_only(batch, sample):
    """Where every sample's tokens are hidden, the loss is the same whatever they are; evaluation sees them."""
    model = tiny_addp(token_dropout=1.0, dropout=0.0)
    mask = batch[1]
    other = sample._replace(tokens=(sample.tokens + 1) % NUM_CODES)
    torch.testing.assert_close(model.train().masked_loss(other, mask), model.masked_loss(sample, mask), rtol=0, atol=0)
    assert not torch.equal(
        model.masked_loss(sample._replace(noisy_images=1 - sample.noisy_images), mask), model.masked_loss(sample, mask)
    )
    assert not torch.equal(model.eval().masked_loss(other, mask), model.masked_loss(sample, mask))


def test_tokens_are_hidden_of_whole_samples_as_often_as_said(sample):
    torch.manual_seed(0)
    model = tiny_addp(token_dropout=0.25).train()
    tokens = sample.tokens[:1].expand(4000, -1)
    hidden = model._drop_tokens(tokens) == model.vocabulary.mask_id
    assert torch.equal(hidden.any(1), hidden.all(1))
    assert hidden.all(1).float().mean().item() == pytest.approx(0.25, abs=0.03)  # four standard deviations


def test_dropout_acts_on_the_trained_network_in_train_mode(batch, sample):
    noisy, still = tiny_addp().train(), tiny_addp(dropout=0.0).train()
    assert noisy.masked_loss(sample, batch[1]) != noisy.masked_loss(sample, batch[1])
    assert still.masked_loss(sample, batch[1]) == still.masked_loss(sample, batch[1])


class Wrapper(BaseModel):
    def __init__(self, model):
        super().__init__()
        self.network = model

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.network(*inputs)


@pytest.mark.parametrize('read', [lambda model: model.state_dict(), get_state_dict], ids=['torch', 'mmengine'])
@pytest.mark.parametrize('wrap', [lambda model: model, Wrapper], ids=['plain', 'wrapped'])
def test_the_frozen_networks_are_not_in_the_state_dict(read, wrap):
    keys = read(wrap(tiny_addp())).keys()
    assert any('blocks.0.attn.qkv.weight' in key for key in keys)
    assert not [key for key in keys if 'tokenizer.' in key or 'token_predictor.' in key]


def test_the_state_dict_has_the_published_names_of_what_is_trained():
    model = tiny_addp()
    assert set(model.state_dict()) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    'load',
    [
        lambda model, weights: model.load_state_dict(weights),
        lambda model, weights: load_state_dict(model, weights, strict=True),
    ],
    ids=['torch', 'mmengine'],
)
def test_a_state_dict_without_frozen_networks_loads_strictly_and_leaves_them_alone(load):
    source, target = tiny_addp(), Wrapper(tiny_addp())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    kept = copy.deepcopy(frozen_parameters(target.network))
    load(target, {f'network.{name}': value for name, value in source.state_dict().items()})
    assert torch.equal(target.network.pos_embed, source.pos_embed)
    assert all(torch.equal(value, kept[name]) for name, value in frozen_parameters(target.network).items())


def test_a_state_dict_with_frozen_networks_loads_them_too():
    source, target = tiny_addp(), tiny_addp()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    target.load_state_dict({**source.state_dict(), **frozen_parameters(source)})
    loaded = dict(target.named_parameters())
    assert all(torch.equal(value, loaded[name]) for name, value in source.named_parameters())


@pytest.mark.parametrize('name', ['pos_embed', 'tokenizer.encoder.conv_in.weight'])
def test_a_state_dict_with_one_tensor_missing_is_refused_with_its_name(name):
    model = tiny_addp()
    weights = {**model.state_dict(), **frozen_parameters(model)}
    del weights[name]
    with pytest.raises(RuntimeError, match=name):
        model.load_state_dict(weights)


def test_a_copy_of_the_model_keeps_its_own_weights(batch):
    model = tiny_addp()
    twin = copy.deepcopy(model)
    twin.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    assert torch.equal(twin.pos_embed, model.pos_embed + 1)
    assert not [name for name in twin.state_dict() if name.startswith('tokenizer.')]


def test_frozen_dtype_applies_to_the_frozen_networks_alone(batch, sample):
    model = tiny_addp(frozen_dtype='bf16')
    assert model.token_predictor.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert model.blocks[0].attn.qkv.weight.dtype == torch.float32
    half = model.diffuse(*batch)
    assert half.noisy_images.dtype == half.target.dtype == torch.float32
    torch.testing.assert_close(half.target.sum(-1), torch.ones(3, NUM_TOKENS))
    assert not torch.equal(half.target, sample.target)
    assert (half.target - sample.target).abs().max() < 0.05


def test_with_a_precision_of_their_own_the_frozen_networks_ignore_autocast(batch):
    model = tiny_addp(frozen_dtype='float32')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        under_autocast = model.diffuse(*batch)
    assert torch.equal(under_autocast.target, model.diffuse(*batch).target)


def test_without_one_they_follow_autocast(model, batch, sample):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert not torch.equal(model.diffuse(*batch).target, sample.target)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="unknown precision 'int8': use one of"):
        tiny_addp(frozen_dtype='int8')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_stays_finite_with_extreme_inputs(dtype, batch, sample):
    model = tiny_addp().train()
    pixels = torch.full_like(sample.noisy_images, 1e30)
    pixels[:, :, ::2] = float('-inf')
    target = torch.zeros_like(sample.target)
    target[..., 0] = 1
    with torch.autocast('cpu', dtype=dtype):
        loss = model.masked_loss(sample._replace(noisy_images=pixels, target=target), batch[1])
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_mixed_precision_gives_nearly_the_loss_of_full_precision(model, batch, sample):
    expected = model.masked_loss(sample, batch[1])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(model.masked_loss(sample, batch[1]), expected, rtol=0.02, atol=0)


def test_the_defaults_are_the_published_base_model():
    with torch.device('meta'):
        model = ADDP()
    assert (model.num_tokens, model.num_codes, model.vocabulary.size) == (256, 1024, 2025)
    assert get_arch('base').width == model.pos_embed.shape[-1] == 768
    assert len(model.decoder_blocks) == len(model.token_predictor.decoder_blocks) == 8
    assert model.decoder_blocks[0].attn.num_heads == 16


def test_another_resolution_and_number_of_codes_follow_from_the_options():
    model = tiny_addp(img_size=48, tokenizer={**TOKENIZER, 'num_codes': 40})
    mask = torch.zeros(1, 36, dtype=torch.bool)
    mask[:, :20] = True
    sample = model.diffuse(torch.rand(1, 3, 48, 48), mask, mask)
    assert model.predict_logits(sample.noisy_images, sample.tokens, mask).shape == (1, 36, 40)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(img_size=36), 'img_size must be a multiple of patch_size, got 36 and 8'),
        (dict(patch_size=16), r'8 x 8 pixels .* for patch_size=16'),
        (dict(decoder_num_heads=5), 'multiple of num_heads'),
        (dict(token_dropout=1.5), 'token_dropout must be a probability, got 1.5'),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_addp(**options)


def test_images_of_another_size_are_refused_with_both_sizes(model, sample, batch):
    with pytest.raises(ValueError, match='expected images of 32 x 32 pixels, got 32 x 40'):
        model.predict_logits(torch.rand(3, 3, 32, 40), sample.tokens, batch[1])
