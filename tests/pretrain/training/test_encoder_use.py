"""What the encoder contributes: against loops, for decoders that do not listen, and the command."""

import json
import math
from dataclasses import replace

import pytest
import torch
from generator_files import save_with_prefix
from running import load_tool
from tiny_addp import ARCH, IMG_SIZE, NUM_CODES, TOKENIZER, tiny_addp, tiny_batch
from tiny_training import make_images

from pretrain.training.encoder_use import EncoderUse, measure_encoder_use


@pytest.fixture(scope='module')
def model():
    return tiny_addp()


@pytest.fixture(scope='module')
def batch():
    return tiny_batch(4)


def by_loops(model, batch):
    """Least, ADDP's and most, token by token."""
    images, mask, noisier_mask = batch
    sample = model.diffuse(images, mask, noisier_mask)
    with torch.no_grad():
        logits = model.predict_logits(sample.noisy_images, sample.tokens, mask)
    targets = [sample.target[index].double() for index in zip(*mask.nonzero(as_tuple=True), strict=True)]
    scores = [logits[index].double().log_softmax(0) for index in zip(*mask.nonzero(as_tuple=True), strict=True)]
    mean = sum(targets) / len(targets)
    count = len(targets)
    return (
        sum(float(-(q * q.log()).sum()) for q in targets) / count,
        sum(float(-(q * s).sum()) for q, s in zip(targets, scores, strict=True)) / count,
        sum(float(-(q * mean.log()).sum()) for q in targets) / count,
    )


def test_the_cross_entropies_are_those_of_a_loop_over_tokens(model, batch):
    use = measure_encoder_use(model, [batch])
    assert (use.least, use.addp, use.most) == pytest.approx(by_loops(model, batch), rel=1e-5)
    assert use.least < use.most <= math.log(NUM_CODES)


def test_batches_count_by_their_tokens(model, batch):
    parts = [tuple(tensor[:2] for tensor in batch), tuple(tensor[2:] for tensor in batch)]
    whole, split = measure_encoder_use(model, [batch]), measure_encoder_use(model, parts)
    assert (split.least, split.addp, split.without_tokens, split.most) == pytest.approx(
        (whole.least, whole.addp, whole.without_tokens, whole.most), rel=1e-5
    )


def test_a_decoder_that_does_not_listen_loses_nothing_by_another_images_encoder(batch):
    deaf = tiny_addp()
    torch.nn.init.zeros_(deaf.decoder_embed.weight)
    use = measure_encoder_use(deaf, [batch])
    assert use.other_image == pytest.approx(use.addp, abs=1e-6)
    listening = measure_encoder_use(tiny_addp(), [batch])
    assert listening.other_image != pytest.approx(listening.addp, abs=1e-4)


def test_hidden_tokens_are_not_seen(batch):
    """A decoder whose token embeddings are all alike predicts the same with and without them; another one does not."""
    blind = tiny_addp()
    with torch.no_grad():
        blind.token_emb.weight.copy_(blind.token_emb.weight[:1].expand_as(blind.token_emb.weight))
    use = measure_encoder_use(blind, [batch])
    assert use.without_tokens == pytest.approx(use.addp, abs=1e-6)
    seeing = measure_encoder_use(tiny_addp(), [batch])
    assert seeing.without_tokens != pytest.approx(seeing.addp, abs=1e-4)


def test_shares_are_of_what_lies_between_the_mean_target_and_the_target():
    use = EncoderUse(least=4.0, addp=4.2, without_tokens=4.5, other_image=4.6, most=5.0)
    assert (use.learned, use.learned_by_encoder, use.lost_without_encoder) == pytest.approx((0.8, 0.5, 0.4))


def test_where_there_is_nothing_to_learn_the_command_says_so_instead_of_shares():
    describe = load_tool('probe_addp').describe
    alike = EncoderUse(least=5.0, addp=5.2, without_tokens=5.3, other_image=5.4, most=5.0)
    for use in (alike, replace(alike, most=5.006)):
        assert use.learned is use.learned_by_encoder is use.lost_without_encoder is None
        assert '%' not in describe(use) and 'Train the token predictor longer' in describe(use)
    assert '80% of what' in describe(replace(alike, most=6.0)) and 'longer' not in describe(replace(alike, most=6.0))


def test_the_model_keeps_its_mode_and_dropout_does_not_act(batch):
    model = tiny_addp().train()
    assert measure_encoder_use(model, [batch]) == measure_encoder_use(model, [batch])
    assert model.training


@pytest.mark.parametrize(
    'batches',
    [[], [tiny_batch(1)], [tuple(t & False if t.dtype == torch.bool else t for t in tiny_batch(2))]],
    ids=['none', 'one image', 'nothing masked'],
)
def test_what_cannot_be_measured_is_refused(model, batches):
    with pytest.raises(ValueError, match='wanted'):
        measure_encoder_use(model, batches)


@pytest.fixture
def config(tmp_path, model):
    predictor = dict(arch=ARCH, decoder_depth=1, decoder_num_heads=4)
    network = dict(predictor, img_size=IMG_SIZE, patch_size=8, tokenizer=TOKENIZER, token_predictor=predictor)
    save_with_prefix(model, 'addp.', tmp_path / 'addp.pth')
    for name in ('tokenizer', 'token_predictor'):
        save_with_prefix(model.get_submodule(name), f'{name}.', tmp_path / f'{name}.pth')
    pipeline = [
        dict(type='SeedAugmentation'),
        dict(type='RandomResizedCropImage', size=IMG_SIZE),
        dict(type='PackImage'),
    ]
    dataset = dict(type='ImageFolderDataset', data_root=str(make_images(tmp_path / 'images')), pipeline=pipeline)
    sources = {name: str(tmp_path / f'{name}.pth') for name in ('tokenizer', 'token_predictor')}
    settings = dict(
        custom_imports=dict(imports=['pretrain.training']),
        train_dataloader=dict(dataset=dataset),
        model=dict(type='ADDPPretraining', network=network, init_cfg=sources),
    )
    path = tmp_path / 'config.py'
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in settings.items()) + '\n', encoding='utf-8')
    return path


def test_the_command_prints_and_writes_the_same_figures_each_time(config, tmp_path, capsys):
    tool = load_tool('probe_addp')
    words = [str(config), str(tmp_path / 'addp.pth'), '--num-images', '5', '--out', str(tmp_path / 'use.json')]
    assert tool.main(words) == 0
    first = json.loads((tmp_path / 'use.json').read_text())
    printed = capsys.readouterr().out
    assert f'{first["addp"]:.3f}  ADDP' in printed and '5 images, 50% masked' in printed
    assert tool.main(words) == 0
    assert json.loads((tmp_path / 'use.json').read_text()) == first
    assert first['least'] < first['addp']


def test_the_command_wants_a_config_of_addp_and_its_weights(config, tmp_path, capsys):
    tool = load_tool('probe_addp')
    assert tool.main([str(config), str(tmp_path / 'none.pth')]) == 1
    assert 'none.pth' in capsys.readouterr().err
    assert tool.main(['pretrain/configs/tokenizer_tiny.py', str(tmp_path / 'addp.pth')]) == 1
    assert "trains 'TokenizerTraining', wanted a config of ADDP" in capsys.readouterr().err
