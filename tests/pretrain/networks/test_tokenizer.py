"""The tokenizer: its unusual structure, its quantiser, its precision, and the parts that train one."""

import math

import pytest
import torch
from tiny_addp import IMG_SIZE, NUM_CODES, NUM_TOKENS, tiny_batch, tiny_tokenizer
from torch.nn import functional as F
from torchvision.models.vgg import cfgs, make_layers

from pretrain.networks.tokenizer import Codebook, ResidualBlock
from pretrain.training.codebook import CodebookUsage, fill_codes
from pretrain.training.tokenizer_objective import (
    PatchDiscriminator,
    PerceptualDistance,
    TokenizerObjective,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    peak_signal_to_noise_ratio,
    reconstruct,
)


@pytest.fixture
def images():
    return tiny_batch()[0]


def test_encode_and_decode_have_the_promised_shapes_and_types(images):
    tokenizer = tiny_tokenizer()
    tokens, latents = tokenizer.encode(images)
    assert tokens.shape == (3, NUM_TOKENS) and tokens.dtype == torch.int64
    assert latents.shape == (3, 16, 4, 4)
    assert tokenizer.decode(latents).shape == (3, 3, IMG_SIZE, IMG_SIZE)


def test_images_need_not_be_square():
    tokens, latents = tiny_tokenizer().encode(torch.rand(1, 3, 32, 48))
    assert tokens.shape == (1, 24) and latents.shape == (1, 16, 4, 6)


def test_where_widths_differ_the_shortcut_acts_on_the_branch_not_on_the_input():
    torch.manual_seed(0)
    block = ResidualBlock(32, 64)
    with torch.no_grad():
        block.conv2.weight.zero_()
    assert (block(torch.rand(1, 32, 4, 4)) == 0).all()


def test_where_widths_agree_the_block_adds_its_input():
    block = ResidualBlock(32, 32)
    with torch.no_grad():
        block.conv2.weight.zero_()
    x = torch.rand(1, 32, 4, 4)
    assert torch.equal(block(x), x)


def test_the_quantiser_takes_the_nearest_code_by_euclidean_distance():
    torch.manual_seed(0)
    codebook = Codebook(50, 4)
    torch.nn.init.normal_(codebook.embedding.weight)
    latents = torch.randn(2, 4, 3, 5)
    tokens, vectors = codebook(latents)
    expected = torch.cdist(latents.double().flatten(2).transpose(1, 2), codebook.embedding.weight.double()).argmin(-1)
    assert torch.equal(tokens, expected)
    assert torch.equal(vectors[1, :, 2, 4], codebook.embedding.weight[expected[1, 14]])


def test_the_quantiser_is_exact_where_codes_are_close_but_far_from_the_origin():
    codebook = Codebook(2, 2)
    with torch.no_grad():
        codebook.embedding.weight.copy_(torch.tensor([[100.0, 100.0], [100.0, 100.02]]))
    latents = torch.tensor([100.0, 100.012]).reshape(1, 2, 1, 1)
    assert codebook(latents).tokens.tolist() == [[1]]


def test_one_hot_soft_latents_are_the_code_vectors(images):
    tokenizer = tiny_tokenizer()
    tokens, latents = tokenizer.encode(images)
    soft = tokenizer.soft_latents(F.one_hot(tokens, NUM_CODES).float(), (4, 4))
    torch.testing.assert_close(soft, latents)


def test_the_memory_layout_of_the_images_does_not_change_the_latents(images):
    tokenizer = tiny_tokenizer()
    other_layout = images.to(memory_format=torch.channels_last)
    assert torch.equal(tokenizer.encode_continuous(other_layout), tokenizer.encode_continuous(images))


def test_in_another_precision_inputs_and_outputs_stay_float32_and_the_codebook_too(images):
    exact, half = tiny_tokenizer(), tiny_tokenizer()
    half.set_precision(torch.bfloat16)
    assert half.encoder.conv_in.weight.dtype == torch.bfloat16 and half.codebook.dtype == torch.float32
    latents = half.encode(images).latents
    reconstruction = half.decode(latents)
    assert latents.dtype == reconstruction.dtype == torch.float32
    expected = exact.decode(latents)
    assert not torch.equal(reconstruction, expected)
    assert (reconstruction - expected).norm() < 0.05 * expected.norm()


def test_images_that_do_not_divide_into_patches_are_refused():
    with pytest.raises(ValueError, match=r'multiples of 8 .* got 30 x 32'):
        tiny_tokenizer().encode(torch.rand(1, 3, 30, 32))


def test_widths_that_group_norm_cannot_divide_are_refused():
    with pytest.raises(ValueError, match=r'multiple of 32 channels, got \(48, 48, 48, 48\)'):
        tiny_tokenizer(base_channels=48)


def test_the_encoder_gets_the_decoders_gradient_straight_through(images):
    tokenizer = tiny_tokenizer()
    result = reconstruct(tokenizer, images)
    (through,) = torch.autograd.grad(result.reconstruction.square().sum(), result.continuous)
    latents = result.quantized.detach().requires_grad_()
    (expected,) = torch.autograd.grad(tokenizer.decode(latents).square().sum(), latents)
    assert (through - expected).norm() < 1e-4 * expected.norm()


def test_the_codebook_loss_moves_codes_and_the_commitment_loss_moves_the_encoder(images):
    tokenizer = tiny_tokenizer()
    losses, _ = TokenizerObjective()(tokenizer, images)
    encoder = tokenizer.encoder.conv_out.weight
    by_codebook = torch.autograd.grad(
        losses['loss_codebook'], (tokenizer.codebook, encoder), retain_graph=True, allow_unused=True
    )
    by_commitment = torch.autograd.grad(losses['loss_commitment'], (tokenizer.codebook, encoder), allow_unused=True)
    assert by_codebook[0].any() and by_codebook[1] is None
    assert by_commitment[0] is None and by_commitment[1].any()


def test_a_few_steps_lower_the_tokenizers_losses(images):
    tokenizer, objective = tiny_tokenizer(), TokenizerObjective()
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-3)
    totals = []
    for _ in range(15):
        losses, _ = objective(tokenizer, images)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0]


def test_usage_figures_tell_one_code_from_all_codes():
    usage = CodebookUsage(8)
    single = usage.update(torch.zeros(2, 16, dtype=torch.long))
    assert math.isclose(single['perplexity'], 1, rel_tol=1e-5) and math.isclose(single['codebook_used'], 1 / 8)
    every = usage.update(torch.arange(16).reshape(2, 8) % 8)
    assert math.isclose(every['perplexity'], 8, rel_tol=1e-5) and every['codebook_used'] == 1


def test_codes_that_stay_unused_die_and_are_revived_on_latents_of_the_batch():
    tokenizer, usage = tiny_tokenizer(), CodebookUsage(NUM_CODES, decay=0.5)
    assert not usage.dead.any()
    before = tokenizer.codebook.detach().clone()
    for _ in range(5):
        usage.update(torch.arange(20).reshape(1, 20))
    assert usage.dead.tolist() == [False] * 20 + [True] * 44
    continuous = torch.randn(4, 16, 4, 4)
    assert usage.revive(tokenizer, continuous, torch.Generator().manual_seed(0)) == 44
    assert torch.equal(tokenizer.codebook[:20], before[:20])
    latents = continuous.permute(0, 2, 3, 1).reshape(-1, 16)
    revived = tokenizer.codebook[20:].detach()
    assert all((latents == code).all(1).any() for code in revived)
    assert len(revived.unique(dim=0)) == 44
    assert not usage.dead.any()


def test_a_batch_with_fewer_latents_than_codes_still_fills_them_all():
    tokenizer = tiny_tokenizer()
    continuous = torch.randn(1, 16, 2, 2)
    fill_codes(tokenizer, continuous, torch.ones(NUM_CODES, dtype=torch.bool))
    assert len(tokenizer.codebook.unique(dim=0)) == 4


def test_the_peak_signal_to_noise_ratio_of_an_error_of_a_tenth_is_20_db():
    images = torch.full((2, 3, 4, 4), 0.5)
    assert math.isclose(peak_signal_to_noise_ratio(images + 0.1, images), 20, rel_tol=1e-4)


def test_the_adversarial_losses_train_each_its_own_network(images):
    tokenizer = tiny_tokenizer()
    objective = TokenizerObjective(adversarial_weight=0.5, discriminator=dict(base_channels=8, num_layers=2))
    losses, _ = objective(tokenizer, images)
    judge, painter = objective.discriminator.layers[0].weight, tokenizer.decoder.conv_out.weight
    for name, gets, gets_not in (('loss_adversarial', painter, judge), ('loss_discriminator', judge, painter)):
        gradients = torch.autograd.grad(losses[name], (gets, gets_not), retain_graph=True, allow_unused=True)
        assert gradients[0].any() and gradients[1] is None


def test_before_its_start_the_adversarial_term_is_zero_but_every_parameter_has_a_gradient(images):
    objective = TokenizerObjective(
        adversarial_weight=0.5, adversarial_start_iters=10, discriminator=dict(base_channels=8)
    )
    losses, _ = objective(tiny_tokenizer(), images, iteration=9)
    assert losses['loss_adversarial'] == 0 and losses['loss_discriminator'] == 0
    sum(losses.values()).backward()
    assert all(
        parameter.grad is not None and not parameter.grad.any() for parameter in objective.discriminator.parameters()
    )


def test_the_adaptive_weight_gives_both_gradients_one_norm():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    factor = adaptive_weight((3 * weight).sum(), (0.5 * weight).sum(), weight)
    assert math.isclose(factor, 6, rel_tol=1e-3)


@pytest.mark.parametrize(
    ('factor', 'batch_size'), [(1.0, 2), (1e-6, 2), (1e-6, 64), (1e4, 2)], ids=['usual', 'small', 'tiny', 'large']
)
def test_the_adaptive_weight_in_float16_is_that_of_float32(factor, batch_size):
    """The gradient of a mean over a large batch is below float16's numbers at each pixel."""
    torch.manual_seed(0)
    last = torch.nn.Conv2d(8, 3, 3, padding=1)
    judge = PatchDiscriminator(base_channels=8, num_layers=1)
    x, images = torch.rand(batch_size, 8, 32, 32), torch.rand(batch_size, 3, 32, 32)
    weights = []
    for half in (False, True):
        with torch.autocast('cpu', torch.float16, enabled=half):
            reconstruction = last(x).float()
            losses = F.l1_loss(reconstruction, images), generator_loss(judge, reconstruction)
            weights.append(adaptive_weight(losses[0] * factor, losses[1] * factor, last.weight))
    assert weights[0] > 0
    assert math.isclose(weights[1], weights[0], rel_tol=0.01)


def test_layouts_give_the_same_tokens_and_can_be_chosen(images):
    tokenizer = tiny_tokenizer()
    plain = tokenizer.encode_continuous(images)
    tokenizer.lay_out()
    assert tokenizer.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(tokenizer.encode_continuous(images), plain, rtol=1e-4, atol=1e-4)
    tokens = tokenizer.encode(images).tokens
    tokenizer.lay_out(channels_last=False)
    assert tokenizer.encoder.mid.block_1.conv1.weight.is_contiguous()
    assert torch.equal(tokenizer.encode_continuous(images), plain)
    assert torch.equal(tokenizer.encode(images).tokens, tokens)


def test_the_hinge_losses_rest_once_real_and_fake_are_told_apart():
    class Brightness(torch.nn.Module):
        def forward(self, images):
            return images.mean((1, 2, 3)) * 4 - 2

    dark, bright = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    assert discriminator_loss(Brightness(), bright, dark) == 0
    assert discriminator_loss(Brightness(), dark, bright) == 3
    assert generator_loss(Brightness(), dark) == 2


def test_the_discriminators_score_of_an_image_does_not_depend_on_its_batch(images):
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=8, num_layers=2)
    torch.testing.assert_close(discriminator(images)[:1], discriminator(images[:1]))


def test_the_perceptual_distance_refuses_to_work_without_weights(images):
    with pytest.raises(RuntimeError, match='load_vgg16'):
        PerceptualDistance()(images, images)


def test_the_perceptual_distance_is_zero_for_equal_images_and_has_a_gradient_else(images):
    torch.manual_seed(0)
    distance = PerceptualDistance()
    weights = {f'features.{name}': value for name, value in make_layers(cfgs['D']).state_dict().items()}
    distance.load_vgg16(weights | {'classifier.0.weight': torch.zeros(1)})
    other = images.flip(-1).requires_grad_()
    assert distance(images, images) == 0
    value = distance(other, images)
    value.backward()
    assert value > 0 and other.grad.any()


def test_vgg_weights_with_a_layer_missing_are_refused():
    weights = {f'features.{name}': value for name, value in make_layers(cfgs['D']).state_dict().items()}
    del weights['features.0.bias']
    with pytest.raises(RuntimeError, match=r'features\.0\.bias'):
        PerceptualDistance().load_vgg16(weights)
