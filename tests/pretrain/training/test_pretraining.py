"""Training of all three networks through tools/train.py: frozen networks, resume, conversion, several processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import stopping  # noqa: F401  (registers the loop)
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper, build_optim_wrapper
from running import load_tool, logged_losses, toy_config
from tiny_addp import IMG_SIZE, NUM_CODES, TOKENIZER, tiny_batch, tiny_predictor, tiny_tokenizer
from tiny_training import (
    CONFIGS,
    MODELS,
    NUM_IMAGES,
    PREDICTOR,
    as_loaded,
    make_images,
    random_addp,
    state_dict,
    step_once,
    train,
    write_leaf,
)

from addp_backbone.checkpoint.convert import convert_state_dict, read_checkpoint
from addp_backbone.checkpoint.storage import CheckpointError
from addp_backbone.runtime.optim_wrappers import BFloat16OptimWrapper
from addp_backbone.runtime.runner import StageRunner
from addp_backbone.runtime.scale_lr import scale_lr
from pretrain.training.hooks import TrainedPartEMA
from pretrain.training.models import ADDPPretraining, TokenizerTraining, TokenPredictorTraining
from pretrain.weights.loading import find_weights, load_network

FROZEN = ('addp.tokenizer.', 'addp.token_predictor.')


@pytest.fixture(scope='session')
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images``, and the work dirs and configs of the three stages, each trained for four iterations."""
    root = tmp_path_factory.mktemp('stages')
    images = make_images(root / 'images')
    sources = dict(tokenizer=str(root / 'tokenizer_tiny'), token_predictor=str(root / 'token_predictor_tiny'))
    for name, model in MODELS.items():
        needed = {
            'tokenizer_tiny': {},
            'token_predictor_tiny': dict(tokenizer=sources['tokenizer']),
            'addp_tiny': sources,
        }[name]
        config = write_leaf(root / 'configs', name, images, dict(model, init_cfg=needed), train_cfg=dict(max_iters=4))
        options = (
            ('default_hooks.ema.type=EMAHook', 'default_hooks.ema.ema_type=TrainedPartEMA')
            if name == 'addp_tiny'
            else ()
        )
        train(config, root / name, options=options)
    return root


@pytest.mark.parametrize('name', MODELS)
def test_a_run_stopped_and_resumed_gives_the_same_bits_as_an_unbroken_one(stages, tmp_path, name):
    options = (
        ('default_hooks.ema.type=EMAHook', 'default_hooks.ema.ema_type=TrainedPartEMA') if name == 'addp_tiny' else ()
    )
    stopped = tmp_path / 'run'
    stopped.mkdir()
    (stopped / 'iter_2.pth').symlink_to(stages / name / 'iter_2.pth')
    (stopped / 'last_checkpoint').write_text(str(stopped / 'iter_2.pth'))
    train(stages / 'configs' / f'{name}.py', stopped, '--resume', options=options)
    unbroken, resumed = logged_losses(stages / name), logged_losses(stopped)
    assert sorted(unbroken) == [1, 2, 3, 4] and sorted(resumed) == [3, 4]
    for step in resumed:
        noise = ('time', 'images_per_s', 'memory', 'eta')
        assert {k: v for k, v in resumed[step].items() if not any(word in k for word in noise)} == {
            k: v for k, v in unbroken[step].items() if not any(word in k for word in noise)
        }
    for key, value in state_dict(stages / name / 'iter_4.pth').items():
        assert torch.equal(value, state_dict(stopped / 'iter_4.pth')[key]), key


def test_the_log_has_what_a_user_watches(stages):
    record = logged_losses(stages / 'tokenizer_tiny')[4]
    assert {'psnr', 'codebook_used', 'perplexity', 'images_per_s', 'grad_norm', 'lr'} <= record.keys()
    assert {'loss', 'mask_ratio', 'target_entropy'} <= logged_losses(stages / 'addp_tiny')[4].keys()
    assert {record['mask_ratio'] for record in logged_losses(stages / 'addp_tiny').values()} != {
        record.get('mask_ratio')
    }


def test_checkpoints_hold_no_frozen_network(stages):
    assert not [name for name in state_dict(stages / 'addp_tiny' / 'iter_4.pth') if name.startswith(FROZEN)]
    assert all(
        name.startswith('token_predictor.') for name in state_dict(stages / 'token_predictor_tiny' / 'iter_4.pth')
    )


def test_the_frozen_networks_are_those_of_the_two_runs_before(stages):
    cfg = Config.fromfile(stages / 'configs' / 'addp_tiny.py')
    model = ADDPPretraining(cfg.model.network, init_cfg=cfg.model.init_cfg)
    model.init_weights()
    for name in ('tokenizer', 'token_predictor'):
        trained = state_dict(stages / f'{name}_tiny' / 'iter_4.pth')
        for key, value in model.addp.get_submodule(name).state_dict().items():
            assert torch.equal(value, trained[f'{name}.{key}']), key


def test_a_checkpoint_of_ours_converts_and_gives_the_averaged_weights(stages):
    checkpoint = read_checkpoint(stages / 'addp_tiny' / 'iter_4.pth')
    report = convert_state_dict(checkpoint, img_size=None, patch_size=None)
    assert (report.format, report.missing) == ('addp', [])
    assert report.state_dict.keys() >= {
        'patch_embed.proj.weight',
        'pos_embed',
        'tokenizer_norm.weight',
        'blocks.0.attn.qkv.weight',
    }
    averaged, trained = checkpoint['state_dict'], checkpoint['ema_state_dict']
    name = 'blocks.0.attn.qkv.weight'
    assert torch.equal(report.state_dict[name], averaged[f'addp.{name}'])
    assert not torch.equal(report.state_dict[name], trained[f'module.addp.{name}'])
    assert not [key for key in trained if 'tokenizer.' in key or 'token_predictor.' in key]


def test_the_average_shares_the_frozen_networks_and_follows_the_trained_ones():
    model = random_addp()
    average = TrainedPartEMA(model, momentum=0.25)
    assert average.module.addp.tokenizer is model.addp.tokenizer
    assert [name for name, _ in average.module.named_parameters()] == [name for name, _ in model.named_parameters()]
    average.update_parameters(model)
    before = model.addp.cls_token.detach().clone()
    with torch.no_grad():
        model.addp.cls_token += 1
    average.update_parameters(model)
    torch.testing.assert_close(average.module.addp.cls_token, before + 0.25)
    hook = EMAHook(ema_type='TrainedPartEMA')
    hook.src_model, hook.ema_model = model, average
    hook._swap_ema_parameters()
    torch.testing.assert_close(model.addp.cls_token, before + 0.25)


def test_training_moves_the_trained_and_leaves_the_frozen_parameters():
    model = random_addp()
    before = {name: value.clone() for name, value in model.named_parameters()}
    wrapper = OptimWrapper(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01))
    for _ in range(2):
        model.train()
        model.train_step(as_loaded(tiny_batch()[0]), wrapper)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if not name.startswith(FROZEN)}
    assert not model.addp.tokenizer.training and not model.addp.token_predictor.training


def test_the_losses_of_all_three_fall_on_a_batch_seen_again_and_again():
    images = tiny_batch()[0]
    torch.manual_seed(0)
    predictor = TokenPredictorTraining(PREDICTOR, TOKENIZER, IMG_SIZE)
    torch.nn.init.normal_(predictor.tokenizer.codebook, std=0.3)
    for model, iters in ((TokenizerTraining(TOKENIZER), 12), (predictor, 25), (random_addp(), 25)):
        wrapper = OptimWrapper(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3))
        model.train()
        losses = [model.train_step(as_loaded(images), wrapper)['loss'].item() for _ in range(iters)]
        assert sum(losses[-4:]) < 0.98 * sum(losses[:4]), (type(model).__name__, losses)


def test_bfloat16_training_is_finite_and_close_to_float32():
    losses = []
    for kind in (OptimWrapper, BFloat16OptimWrapper):
        model = random_addp(dropout=0.0).train()
        torch.manual_seed(1)
        wrapper = kind(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
        losses.append(model.train_step(as_loaded(tiny_batch()[0]), wrapper)['loss'].item())
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.02 * losses[0]


def test_weight_decay_spares_1d_parameters_and_biases_of_any_shape():
    model = random_addp()
    wrapper = build_optim_wrapper(
        model, dict(constructor='TwoGroupsConstructor', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05))
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group['params']} for group in wrapper.optimizer.param_groups)
    assert [group['weight_decay'] for group in wrapper.optimizer.param_groups] == [0.05, 0.0]
    assert 'addp.mlm_layer.bias' in spared and model.addp.mlm_layer.bias.ndim == 3
    assert {
        'addp.cls_token',
        'addp.mask_token',
        'addp.pos_embed',
        'addp.token_emb.weight',
        'addp.patch_embed.proj.weight',
    } <= decayed
    assert spared == {
        name for name, p in model.named_parameters() if p.requires_grad and (p.ndim == 1 or name.endswith('.bias'))
    }
    assert decayed | spared == {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_learning_rate_follows_the_real_global_batch_and_the_epochs_stay():
    cfg = Config.fromfile(CONFIGS / 'addp_base_1600e.py')
    cfg.optim_wrapper.accumulative_counts = 2
    assert cfg.auto_scale_lr.enable
    scale_lr(cfg, world_size=8)  # 64 a process
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4 * 8 * 64 * 2 / 256)
    assert cfg.train_cfg.max_epochs == 1600 and cfg.param_scheduler[0].end == 40


@pytest.mark.parametrize('accumulation', [1, 2])
def test_the_cosine_ends_with_the_last_epoch_also_under_accumulation_and_resume(tmp_path, accumulation):
    schedule = Config.fromfile(CONFIGS / '_base_' / 'schedule_epochs.py')
    schedulers = [dict(scheduler) for scheduler in schedule.param_scheduler]
    schedulers[0]['end'] = schedulers[1]['begin'] = 2
    rates: list[float] = []
    for run in range(2):  # seven samples, batch 3: three iterations an epoch; the first run is stopped in the middle
        cfg = toy_config(tmp_path, param_scheduler=schedulers)
        whole = dict(type='EpochCountedTrainLoop', max_epochs=6)
        cfg.train_cfg = whole if run else dict(whole, type='StoppedTrainLoop', stop_after_iters=8)
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.optim_wrapper.accumulative_counts = accumulation
        cfg.optim_wrapper.optimizer.lr = 1.0
        cfg.resume = bool(run)
        runner = StageRunner.from_cfg(cfg)
        step = runner.model.train_step
        runner.model.train_step = lambda *args, step=step, runner=runner, **kw: (
            rates.append(runner.optim_wrapper.get_lr()['lr'][0]),
            step(*args, **kw),
        )[1]
        runner.train()
    assert len(rates) == 18
    assert rates[0] < 0.01 and max(rates) == rates[6] == pytest.approx(1.0)
    expected = [0.5 * (1 + torch.cos(torch.tensor(torch.pi * i / 12)).item()) for i in range(12)]
    assert rates[6:] == pytest.approx(expected, abs=1e-6)


def test_the_tokenizer_starts_with_codes_that_are_latents_and_revives_dead_ones():
    torch.manual_seed(0)
    model = TokenizerTraining(TOKENIZER).train()
    model.usage.decay = 0.0
    losses = model(tiny_batch()[0])
    assert losses['loss_codebook'].item() < 1e-8  # 48 latents, 64 codes: every latent is a code
    used = float(losses['codebook_used'])
    assert used <= 48 / NUM_CODES
    with torch.no_grad():
        model.tokenizer.codebook[1:] += 100
        model(tiny_batch()[0])
    assert model.revive_codes() == NUM_CODES - 1
    assert model.tokenizer.codebook.abs().max() < 50


def test_the_codebook_starts_when_quantising_does():
    torch.manual_seed(0)
    model = TokenizerTraining(TOKENIZER, dict(quantize_from_iters=1)).train()
    before = model.tokenizer.codebook.detach().clone()
    first = model(tiny_batch()[0])
    assert first['loss_codebook'].item() == first['loss_commitment'].item() == 0 and 'perplexity' not in first
    assert torch.equal(model.tokenizer.codebook, before) and model.revive_codes() == 0
    second = model(tiny_batch()[0])
    assert not torch.equal(model.tokenizer.codebook, before) and 'perplexity' in second
    sum(value for name, value in first.items() if 'loss' in name).backward()
    assert all(parameter.grad is not None for parameter in model.tokenizer.parameters())


def test_the_adversarial_term_trains_the_discriminator_from_its_start_iteration_on():
    torch.manual_seed(0)
    model = TokenizerTraining(
        TOKENIZER,
        dict(adversarial_weight=0.5, adversarial_start_iters=1, discriminator=dict(base_channels=8, num_layers=1)),
    ).train()
    first, second = model(tiny_batch()[0]), model(tiny_batch()[0])
    assert first['loss_discriminator'].item() == first['loss_adversarial'].item() == 0
    assert second['loss_discriminator'].item() > 0
    sum(value for name, value in second.items() if 'loss' in name).backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in model.objective.discriminator.parameters()
    )


def test_the_perceptual_term_needs_weights_and_stays_out_of_checkpoints():
    model = TokenizerTraining(TOKENIZER, dict(perceptual_weight=1.0))
    with pytest.raises(CheckpointError, match=r'vgg16-397923af\.pth and set model\.init_cfg\.vgg16'):
        model.init_weights()
    assert not [name for name in model.state_dict() if 'perceptual' in name]


@pytest.mark.parametrize(
    ('source', 'name', 'parts'),
    [
        (
            'exp/pretrained_model/mage-vitb-1600.pth',
            'token_predictor',
            (
                'exp/pretrained_model/mage-vitb-1600.pth does not exist',
                '1Q6tbt3vF0bSrv5sPrjpFu8ksG3vTsVX2',
                'model.init_cfg.token_predictor',
            ),
        ),
        ('vqgan_jax_strongaug.ckpt', 'tokenizer', ('13S_unB87n6KKuuMdyMnyExW0G1kplTbP', 'model.init_cfg.tokenizer')),
        (
            'mine.pth',
            'tokenizer',
            ('exp/pretrained_model/mine.pth', 'pretrain/configs/tokenizer_*.py', 'model.init_cfg.tokenizer'),
        ),
        ('.', 'token_predictor', ('holds no checkpoint', 'token_predictor_*.py')),
        (None, 'tokenizer', ('has no weights', "'random'")),
    ],
)
def test_missing_weights_are_named_with_their_source_and_the_option(tmp_path, monkeypatch, source, name, parts):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        find_weights(source, name)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_weights_are_found_where_the_published_readme_places_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'exp/pretrained_model').mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    torch.save(dict(state_dict=tokenizer.state_dict()), tmp_path / 'exp/pretrained_model/vqgan_jax_strongaug.ckpt')
    other = tiny_tokenizer()
    torch.nn.init.zeros_(other.codebook)
    load_network(other, 'tokenizer', 'vqgan_jax_strongaug.ckpt')
    assert torch.equal(other.codebook, tokenizer.codebook)


def test_weights_of_another_size_are_refused_with_the_option(tmp_path):
    torch.save(
        dict(state_dict={f'token_predictor.{k}': v for k, v in tiny_predictor().state_dict().items()}),
        tmp_path / 'iter_1.pth',
    )
    with pytest.raises(CheckpointError, match=r'(?s)model\.init_cfg\.token_predictor.*decoder_blocks\.1'):
        load_network(tiny_predictor(decoder_depth=2), 'token_predictor', str(tmp_path))


def test_two_processes_equal_one_with_the_same_global_batch_given_the_same_masks(tmp_path):
    step_once(0, 1, tmp_path)
    mp.spawn(step_once, args=(2, tmp_path), nprocs=2)
    one, two = (torch.load(tmp_path / f'{n}.pth') for n in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f'{name}: {text}'
        )


def test_an_epoch_is_every_image_once(stages):
    cfg = Config.fromfile(stages / 'configs' / 'addp_tiny.py')
    runner = StageRunner.from_cfg(
        Config(
            dict(
                toy_config(stages / 'toy'),
                train_dataloader=cfg.train_dataloader,
                custom_hooks=[],
                train_cfg=dict(type='EpochCountedTrainLoop', max_epochs=5),
            )
        )
    )
    loop = runner.build_train_loop(runner._train_loop)
    assert (loop.max_epochs, loop.max_iters) == (5, 5 * -(-NUM_IMAGES // 3))


def test_curves_are_drawn_of_runs_and_a_folder_without_a_log_is_refused(stages, tmp_path, capsys):
    tool = load_tool('plot_curves')
    names = [str(stages / name) for name in MODELS]
    cut = shutil.copytree(names[0], tmp_path / Path(names[0]).name)
    log = next(cut.glob('*/vis_data/scalars.json'))
    log.write_text(log.read_text() + '{"loss": 3.5, "st')  # as a kill leaves it
    names[0] = str(cut)
    assert tool.main([*names, '--out', str(tmp_path / 'curves.png')]) == 0
    assert (tmp_path / 'curves.png').stat().st_size > 1000
    printed = capsys.readouterr().out
    assert (
        all(f'{name}: loss ' in printed for name in names)
        and '(iteration 1) -> ' in printed
        and '(iteration 4)' in printed
    )
    assert tool.main([str(tmp_path)]) == 1
