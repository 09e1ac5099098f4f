"""pretrain/generation/trajectory.py: one step against golden values, the loop by its properties."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_addp import IMG_SIZE, NUM_CODES, NUM_TOKENS, tiny_addp
from torch import Tensor

from pretrain import ADDP
from pretrain.generation.sampling import Sampling, image_generator, sample_tokens, to_gumbel
from pretrain.generation.trajectory import GenerationStep, advance, generate, mix_latents, next_mask, trajectory
from pretrain.weights import load_published

GOLDEN = Path(__file__).parents[3] / 'tests' / 'golden'
STEPS = range(5)
TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / 'addp_tiny.outputs.safetensors')


@pytest.fixture(scope='module')
def golden_run(golden: dict[str, Tensor]) -> list[tuple[Tensor, GenerationStep]]:
    """Our logits and state of every golden step, each from our own state before it, given the recorded draws."""
    config = json.loads((GOLDEN / 'addp_tiny.json').read_text())['config']

    def split(sizes: dict) -> dict:
        arch = {name: sizes[name] for name in ('width', 'depth', 'num_heads')}
        return dict(arch=arch, decoder_depth=sizes['decoder_depth'], decoder_num_heads=sizes['decoder_num_heads'])

    model = ADDP(
        **split(config),
        img_size=config['img_size'],
        patch_size=config['patch_size'],
        tokenizer=config['tokenizer'],
        token_predictor=split(config['token_predictor']),
    ).eval()
    load_published(model, load_file(GOLDEN / 'addp_tiny.weights.safetensors'))
    sampling = Sampling(steps=len(STEPS))
    state = GenerationStep(
        torch.zeros(2, 3, 256, 256), torch.zeros(2, 256, dtype=torch.int64), torch.ones(2, 256, dtype=torch.bool)
    )
    run = []
    with torch.no_grad():
        for step in STEPS:
            logits = model.predict_logits(state.images, state.tokens, state.mask)
            sampled, gumbel = golden[f'step{step}.sampled_ids'].long(), golden[f'step{step}.gumbel']
            state = advance(
                model, state, logits, sampled, gumbel, sampling.num_masked(step, 256), sampling.temperature_at(step)
            )
            run.append((logits, state))
    return run


@pytest.fixture(scope='module')
def model() -> ADDP:
    return tiny_addp()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, IMG_SIZE, IMG_SIZE, generator=torch.Generator().manual_seed(5))


def some_masked(num_masked: int, rows: int = 3) -> Tensor:
    """(rows, L) bool with that many True entries in each row, not the same ones."""
    return torch.rand(rows, NUM_TOKENS, generator=torch.Generator().manual_seed(6)).argsort(1).argsort(1) < num_masked


def last_step(model: ADDP, num_images: int, sampling: Sampling, first: int = 0, **to_edit: Tensor) -> GenerationStep:
    generators = [image_generator(3, first + i) for i in range(num_images)]
    return list(trajectory(model, num_images, sampling, generators, **to_edit))[-1]


@pytest.mark.parametrize('step', STEPS)
def test_the_logits_equal_the_golden_ones_of_step(step, golden, golden_run):
    wanted = golden[f'step{step}.logits']
    assert (golden_run[step][0][:, ::4, ::4] - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


@pytest.mark.parametrize('step', STEPS)
def test_the_next_mask_equals_the_golden_one_of_step(step, golden, golden_run):
    assert torch.equal(golden_run[step][1].mask, golden[f'step{step}.mask_next'].bool())


@pytest.mark.parametrize('step', STEPS)
def test_the_images_equal_the_golden_ones_of_step(step, golden, golden_run):
    wanted = golden[f'step{step}.image_next']
    assert (golden_run[step][1].images[:, :, ::4, ::4] - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


@pytest.mark.parametrize('steps', [1, 2, 5, 20, 256])
@pytest.mark.parametrize('num_initial', [256, 100, 3])
def test_the_number_of_masked_tokens_follows_the_schedule(steps, num_initial):
    cosine, linear = Sampling(steps), Sampling(steps, 'linear')
    for step in range(steps):
        done = (step + 1) / steps
        wanted = math.ceil(round(num_initial * math.cos(math.pi / 2 * done), 9))
        assert cosine.num_masked(step, num_initial) == min(max(wanted, 1), num_initial)
        wanted = math.ceil(round(num_initial * (1 - done), 9))
        assert linear.num_masked(step, num_initial) == min(max(wanted, 1), num_initial)


@pytest.mark.parametrize('schedule', ['cosine', 'linear'])
@pytest.mark.parametrize('steps', [1, 2, 5, 20])
def test_every_step_masks_as_many_tokens_as_the_schedule_says(model, schedule, steps):
    sampling = Sampling(steps, schedule)
    masked = [step.mask.sum(1).tolist() for step in trajectory(model, 2, sampling)]
    assert masked == [[sampling.num_masked(step, NUM_TOKENS)] * 2 for step in range(steps)]


def test_the_number_is_exact_where_the_cosine_is_a_half():
    assert Sampling(3).num_masked(1, 256) == 128


def test_the_temperature_falls_to_zero_or_stays():
    assert [Sampling(4).temperature_at(step) for step in range(4)] == pytest.approx([4.5, 3, 1.5, 0])
    assert [Sampling(4, dynamic=False).temperature_at(step) for step in range(4)] == [6] * 4


def test_the_first_step_does_not_depend_on_the_start_image(model, images):
    everything = torch.ones(3, NUM_TOKENS, dtype=torch.bool)
    blank = last_step(model, 3, Sampling(1))
    for start in (images, 1 - images):
        given = last_step(model, 3, Sampling(1), images=start, mask=everything)
        assert torch.equal(given.tokens, blank.tokens)
        assert torch.equal(given.mask, blank.mask)


def test_settled_tokens_stay_settled(model):
    before = None
    for step in trajectory(model, 2, Sampling(6), torch.Generator().manual_seed(0)):
        if before is not None:
            assert not (step.mask & ~before.mask).any()
            assert torch.equal(step.tokens[~before.mask], before.tokens[~before.mask])
        before = step


def test_an_image_is_the_same_whatever_the_batch_size(model):
    sampling = Sampling(8)
    together = last_step(model, 7, sampling)
    assert len({tuple(row) for row in together.tokens.tolist()}) == 7
    for index in range(7):
        alone = last_step(model, 1, sampling, first=index)
        assert torch.equal(alone.tokens[0], together.tokens[index])
        assert (alone.images[0] - together.images[index]).abs().max() <= 1 / 255


def test_with_one_generator_the_first_images_do_not_depend_on_how_many_follow(model):
    few, many = (generate(model, n, steps=3, generator=torch.Generator().manual_seed(8)) for n in (1, 4))
    assert torch.allclose(few[0], many[0], atol=1 / 255)
    assert not torch.allclose(many[0], many[1], atol=1 / 255)


def test_images_of_one_run_never_share_their_draws():
    indices = [0, 1, 2, 3, 1000, 49_999, 2**31, 2**32 - 1]
    draws = {
        tuple(torch.rand(4, generator=image_generator(seed, index)).tolist()) for seed in (0, 1) for index in indices
    }
    assert len(draws) == 2 * len(indices)


def test_images_are_in_range_and_of_the_models_size(model):
    result = generate(model, 2, steps=2, schedule='linear', temperature=1.0, generator=torch.Generator().manual_seed(0))
    assert result.shape == (2, 3, IMG_SIZE, IMG_SIZE)
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1


def test_generating_leaves_the_model_in_train_mode_and_uses_no_dropout(model):
    model.train()
    try:
        first, second = (generate(model, 1, steps=2, generator=torch.Generator().manual_seed(0)) for _ in range(2))
        assert model.training
        assert not model.tokenizer.training
    finally:
        model.eval()
    assert torch.equal(first, second)


def test_another_grid_works():
    model = tiny_addp(img_size=24)
    assert generate(model, 2, steps=3).shape == (2, 3, 24, 24)


def test_generation_never_runs_the_token_predictor():
    model = tiny_addp()
    for parameter in model.token_predictor.parameters():
        parameter.data.fill_(math.nan)
    assert generate(model, 1, steps=2, generator=torch.Generator().manual_seed(0)).isfinite().all()


def test_an_empty_edit_mask_gives_the_tokenizers_reconstruction(model, images):
    result = generate(model, 3, images=images, mask=torch.zeros(3, NUM_TOKENS, dtype=torch.bool))
    wanted = model.tokenizer.decode(model.tokenizer.encode(images).latents).clamp(0, 1)
    assert (result - wanted).abs().max() < 1e-5


@pytest.mark.parametrize('num_masked', [1, 5, 15])
def test_unmasked_tokens_survive_editing_and_the_schedule_starts_from_the_mask(model, images, num_masked):
    mask = some_masked(num_masked)
    tokens = model.tokenizer.encode(images).tokens
    sampling = Sampling(4)
    for index, step in enumerate(trajectory(model, 3, sampling, images=images, mask=mask)):
        assert torch.equal(step.tokens[~mask], tokens[~mask])
        assert not (step.mask & ~mask).any()
        assert step.mask.sum(1).tolist() == [sampling.num_masked(index, num_masked)] * 3


def test_editing_draws_the_masked_tokens_anew(model, images):
    mask = some_masked(12)
    edited = last_step(model, 3, Sampling(4), images=images, mask=mask)
    assert (edited.tokens[mask] != model.tokenizer.encode(images).tokens[mask]).float().mean() > 0.5


def test_the_tokens_under_the_mask_have_no_influence(model, images, monkeypatch):
    mask = some_masked(9)
    results = []
    encode = model.tokenizer.encode
    for offset in (0, 17):

        def encode_with_other_tokens_under_the_mask(pixels, offset=offset):
            quantized = encode(pixels)
            return quantized._replace(
                tokens=torch.where(mask, (quantized.tokens + offset) % NUM_CODES, quantized.tokens)
            )

        monkeypatch.setattr(model.tokenizer, 'encode', encode_with_other_tokens_under_the_mask)
        results.append(last_step(model, 3, Sampling(3), images=images, mask=mask).images)
    assert torch.equal(*results)


def test_one_image_and_one_mask_serve_several_variations(model, images):
    mask = some_masked(12)[0]
    edited = last_step(model, 4, Sampling(3), images=images[:1], mask=mask)
    assert edited.images.shape[0] == 4
    assert len({tuple(row) for row in edited.tokens.tolist()}) == 4
    assert (edited.tokens[:, ~mask] == model.tokenizer.encode(images[:1]).tokens[0, ~mask]).all()


def test_next_mask_takes_the_lowest_confidence_and_never_what_is_known():
    probs = torch.tensor([[0.1, 0.9, 0.2, 0.5], [0.4, 0.3, 0.2, 0.1]])
    known = torch.tensor([[True, False, False, False], [False, False, False, True]])
    mask = next_mask(probs, known, 2, 6.0, torch.zeros(2, 4))
    assert mask.tolist() == [[False, False, True, True], [False, True, True, False]]


def test_noise_times_temperature_decides_the_next_mask():
    probs, known = torch.full((1, 3), 0.5), torch.zeros(1, 3, dtype=torch.bool)
    gumbel = torch.tensor([[1.0, -1.0, 0.0]])
    assert next_mask(probs, known, 1, 2.0, gumbel).tolist() == [[False, True, False]]
    assert next_mask(torch.tensor([[0.1, 0.5, 0.9]]), known, 1, 0.5, gumbel).tolist() == [[True, False, False]]
    assert next_mask(torch.tensor([[0.1, 0.5, 0.9]]), known, 1, 2.0, gumbel).tolist() == [[False, True, False]]


def test_next_mask_masks_the_exact_number_when_confidences_tie():
    mask = next_mask(torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.bool), 3, 0.0, torch.zeros(2, 8))
    assert mask.sum(1).tolist() == [3, 3]


def test_next_mask_refuses_more_tokens_than_are_open():
    known = torch.tensor([[True, True, False]])
    with pytest.raises(ValueError, match='cannot mask 2 tokens of each row: a row has only 1'):
        next_mask(torch.ones(1, 3), known, 2, 0.0, torch.zeros(1, 3))


def test_mixed_latents_are_expectations_at_masked_tokens_and_codes_elsewhere(model):
    tokens = torch.arange(2 * NUM_TOKENS).reshape(2, NUM_TOKENS) % NUM_CODES
    logits = torch.randn(2, NUM_TOKENS, NUM_CODES, generator=torch.Generator().manual_seed(0))
    mask = some_masked(6, rows=2)
    latents = mix_latents(model.tokenizer, logits, tokens, mask).flatten(2).transpose(1, 2)  # (B, L, C)
    codebook = model.tokenizer.codebook
    assert torch.allclose(latents[~mask], codebook[tokens[~mask]])
    assert torch.allclose(latents[mask], logits[mask].softmax(-1) @ codebook, atol=1e-6)


def test_tokens_are_drawn_with_their_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    noise = torch.rand(1, 40_000, 3, generator=torch.Generator().manual_seed(0))
    counts = sample_tokens(logits.expand(1, 40_000, 3), to_gumbel(noise)).flatten().bincount(minlength=3) / 40_000
    assert counts.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.01)


def test_nucleus_sampling_draws_from_the_smallest_sufficient_set():
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().expand(1, 4000, 4)
    gumbel = to_gumbel(torch.rand(1, 4000, 4, generator=torch.Generator().manual_seed(0)))
    for top_p, codes in ((0.01, {1}), (0.6, {1, 3}), (0.9, {0, 1, 3}), (1.0, {0, 1, 2, 3}), (None, {0, 1, 2, 3})):
        assert set(sample_tokens(logits, gumbel, top_p).unique().tolist()) == codes


def test_noise_is_finite_at_the_ends_of_its_range():
    assert to_gumbel(torch.tensor([0.0, 1 - 2**-24])).isfinite().all()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(steps=0), 'steps must be at least 1, got 0'),
        (dict(schedule='cubic'), "schedule must be one of .* got 'cubic'"),
        (dict(temperature=-1.0), 'temperature must be 0 or more'),
        (dict(top_p=0.0), 'top_p must lie in'),
        (dict(num_images=0), 'num_images must be at least 1'),
        (dict(generator=[torch.Generator()]), 'got 1 generators for 3 images'),
        (dict(mask=torch.ones(3, NUM_TOKENS, dtype=torch.bool)), 'mask is given without images'),
        (dict(images=torch.zeros(3, 3, IMG_SIZE, IMG_SIZE)), 'images are given without a mask'),
        (
            dict(images=torch.zeros(2, 3, IMG_SIZE, IMG_SIZE), mask=torch.ones(3, NUM_TOKENS, dtype=torch.bool)),
            'images must be floats',
        ),
        (dict(images=torch.zeros(3, 3, IMG_SIZE, IMG_SIZE), mask=torch.ones(3, NUM_TOKENS)), 'mask must be bool'),
        (
            dict(images=torch.zeros(3, 3, IMG_SIZE, IMG_SIZE), mask=torch.ones(3, NUM_TOKENS).tril().bool()),
            'equally many True',
        ),
        *(
            (
                dict(
                    images=torch.full((3, 3, IMG_SIZE, IMG_SIZE), value),
                    mask=torch.ones(3, NUM_TOKENS, dtype=torch.bool),
                ),
                r'images must lie in \[0, 1\], got values from',
            )
            for value in (255.0, -1.0, float('nan'))
        ),
    ],
)
def test_what_does_not_fit_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **{'num_images': 3, **options})
