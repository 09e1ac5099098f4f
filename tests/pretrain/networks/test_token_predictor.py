"""The token predictor: a distribution that depends on visible tokens only, and MAGE's way to train it."""

import pytest
import torch
from tiny_addp import NUM_CODES, NUM_TOKENS, tiny_batch, tiny_predictor

from pretrain.networks.common import Vocabulary, init_position_waves
from pretrain.networks.mask_schedule import draw_predictor_masks
from pretrain.networks.token_predictor import TokenPredictor


@pytest.fixture(scope='module')
def predictor():
    return tiny_predictor().eval()


@pytest.fixture
def tokens():
    return torch.randint(NUM_CODES, (3, NUM_TOKENS), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask():
    return tiny_batch()[1]


def test_positions_that_start_from_waves_make_neighbours_alike_in_both_directions_and_leave_cls_alone():
    rows, columns, width = 5, 7, 32
    embedding = torch.full((1, 1 + rows * columns, width), 9.0)
    init_position_waves((rows, columns), 0.5, embedding)
    assert (embedding[:, 0] == 9).all()
    pattern = embedding[0, 1:].view(rows, columns, width)
    assert pattern.square().mean().sqrt().item() == pytest.approx(0.5, abs=1e-6)
    alike = torch.nn.functional.cosine_similarity(pattern[2, 3], pattern, dim=-1)
    nearest = alike.flatten().topk(5).indices.tolist()
    assert set(nearest) == {2 * 7 + 3, 1 * 7 + 3, 3 * 7 + 3, 2 * 7 + 2, 2 * 7 + 4}
    with pytest.raises(ValueError, match='multiple of 4, got 6'):
        init_position_waves((2, 2), 1.0, torch.zeros(5, 6))


def test_waves_are_for_square_grids_and_off_by_default():
    size = dict(arch=dict(width=32, depth=1, num_heads=2), decoder_depth=1, decoder_num_heads=2, num_codes=8)
    with pytest.raises(ValueError, match='square grid of tokens, got 6'):
        TokenPredictor(**size, num_tokens=6, position_waves=True)
    for waves, expected in ((False, 0.02), (True, 1.0)):
        positions = TokenPredictor(**size, num_tokens=16, position_waves=waves).decoder_pos_embed_learned[:, 1:]
        assert positions.std().item() == pytest.approx(expected, rel=0.3)


def test_the_vocabulary_of_1024_codes_has_the_published_ids():
    vocabulary = Vocabulary(1024)
    assert (vocabulary.size, vocabulary.mask_id, vocabulary.class_id) == (2025, 2024, 1100)


def test_the_ids_beyond_the_codes_are_distinct_for_any_number_of_codes():
    for num_codes in (1, 64, 5000):
        vocabulary = Vocabulary(num_codes)
        assert num_codes <= vocabulary.class_id < vocabulary.mask_id == vocabulary.size - 1


def test_the_prediction_is_a_distribution_over_the_codes(predictor, tokens, mask):
    probs = predictor(tokens, mask)
    assert probs.shape == (3, NUM_TOKENS, NUM_CODES) and probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(-1), torch.ones(3, NUM_TOKENS))


def test_the_prediction_does_not_depend_on_tokens_under_the_mask(predictor, tokens, mask):
    changed = torch.where(mask, (tokens + 7) % NUM_CODES, tokens)
    assert torch.equal(predictor(changed, mask), predictor(tokens, mask))


def test_the_prediction_depends_on_visible_tokens(predictor, tokens, mask):
    changed = torch.where(mask, tokens, (tokens + 7) % NUM_CODES)
    assert not torch.allclose(predictor(changed, mask), predictor(tokens, mask))


def test_permuting_the_batch_permutes_the_prediction(predictor, tokens, mask):
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(predictor(tokens[order], mask[order]), predictor(tokens, mask)[order])


def test_in_bfloat16_the_probabilities_are_float32_and_still_sum_to_one(tokens, mask):
    probs = tiny_predictor().eval().to(torch.bfloat16)(tokens, mask)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(-1), torch.ones(3, NUM_TOKENS))


def test_tokens_of_another_length_are_refused(predictor):
    with pytest.raises(ValueError, match=rf'both be \(B, {NUM_TOKENS}\), got \(1, 9\)'):
        predictor(torch.zeros(1, 9, dtype=torch.long), torch.zeros(1, 9, dtype=torch.bool))


def test_dropped_tokens_are_missing_from_the_encoders_sequence_and_back_in_the_decoders(predictor, tokens, mask):
    lengths = []
    hooks = [
        blocks.register_forward_hook(lambda module, inputs, output: lengths.append(inputs[0].shape[1]))
        for blocks in (predictor.blocks, predictor.decoder_blocks)
    ]
    predictor.predict_logits(tokens, mask, dropped=mask)
    for hook in hooks:
        hook.remove()
    assert lengths == [1 + NUM_TOKENS - 9, 1 + NUM_TOKENS]


def test_dropping_puts_every_kept_place_back_where_it_was(predictor, tokens, mask):
    """With attention and MLPs silenced tokens are independent: leaving some out changes nothing for the others."""
    silent = tiny_predictor().eval()
    with torch.no_grad():
        for block in silent.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
    torch.testing.assert_close(silent.predict_logits(tokens, mask, dropped=mask), silent.predict_logits(tokens, mask))


def test_dropping_rows_of_different_length_is_refused(predictor, tokens, mask):
    uneven = mask.clone()
    uneven[0] = False
    with pytest.raises(ValueError, match='same number'):
        predictor.predict_logits(tokens, mask, dropped=uneven)


def test_the_training_loss_looks_at_masked_tokens_only(predictor, tokens, mask):
    logits = predictor.predict_logits(tokens, mask, dropped=mask)
    expected = torch.nn.functional.cross_entropy(logits[mask], tokens[mask], label_smoothing=0.1)
    torch.testing.assert_close(predictor.training_loss(tokens, mask, dropped=mask), expected)


def test_training_learns_to_fill_in_a_constant_image():
    predictor = tiny_predictor(dropout=0.0).train()
    optimizer = torch.optim.AdamW(predictor.parameters(), 3e-3)
    tokens = torch.full((4, NUM_TOKENS), 5)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(40):
        mask, dropped = draw_predictor_masks(4, NUM_TOKENS, generator)
        loss = predictor.training_loss(tokens, mask, dropped)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    everything = torch.ones(1, NUM_TOKENS, dtype=torch.bool)
    assert (predictor.eval()(tokens[:1], everything).argmax(-1) == 5).all()


def test_every_parameter_takes_part_in_training(tokens, mask):
    predictor = tiny_predictor()
    predictor.training_loss(tokens, mask, dropped=mask).backward()
    assert [name for name, parameter in predictor.named_parameters() if parameter.grad is None] == []
