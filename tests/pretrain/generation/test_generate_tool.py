"""tools/generate.py and what loads its model: the same files for any batch size, processes and interruptions."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from generator_files import GeneratorFiles, save_with_prefix, write_generator_files
from mmengine.config import Config
from PIL import Image
from tiny_addp import IMG_SIZE, tiny_addp

from addp_backbone.checkpoint.storage import CheckpointError
from pretrain.data.figures import contact_sheet, grey_out, to_pil, to_tensor
from pretrain.generation.run import Process, open_blocks
from pretrain.generation.sampling import image_generator
from pretrain.generation.trajectory import generate
from pretrain.weights.generator import load_generator, precision

TOOLS = Path(__file__).parents[3] / 'tools'
MAIN = runpy.run_path(str(TOOLS / 'generate.py'))['main']
NUM_IMAGES = 7
OPTIONS = ['--num-images', str(NUM_IMAGES), '--batch-size', '2', '--steps', '4']


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> GeneratorFiles:
    return write_generator_files(tmp_path_factory.mktemp('generator'))


@pytest.fixture(autouse=True)
def same_number_of_threads() -> Iterator[None]:
    """The tool sets it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def unbroken(files: GeneratorFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by one process."""
    out = tmp_path_factory.mktemp('runs') / 'unbroken'
    before = torch.get_num_threads()
    assert MAIN([files.config, files.checkpoint, '--out', str(out), *OPTIONS, '--steps-figure', '1']) == 0
    torch.set_num_threads(before)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != 'steps.png'}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == 'PNG'
        return np.asarray(image).astype(int)


def test_a_run_writes_its_images_a_sheet_and_its_settings(unbroken):
    names = [f'{index:05d}.png' for index in range(NUM_IMAGES)]
    assert sorted(contents(unbroken)) == [*names, 'generation.json', 'grid.png']
    assert pixels(unbroken / '00000.png').shape == (IMG_SIZE, IMG_SIZE, 3)
    settings = json.loads((unbroken / 'generation.json').read_text())
    assert (settings['seed'], settings['steps'], settings['schedule']) == (0, 4, 'cosine')
    sheet = pixels(unbroken / 'grid.png')
    assert np.array_equal(sheet[:IMG_SIZE, :IMG_SIZE], pixels(unbroken / '00000.png'))


def test_the_files_hold_what_generate_returns(files, unbroken):
    images = generate(files.model, 2, steps=4, generator=[image_generator(0, index) for index in (2, 3)])
    for index, image in zip((2, 3), to_pil(images), strict=True):
        assert np.abs(np.asarray(image).astype(int) - pixels(unbroken / f'{index:05d}.png')).max() <= 1


def test_the_steps_figure_shows_every_step_and_ends_with_the_image(unbroken):
    figure = pixels(unbroken / 'steps.png')
    side = 96  # enlarged threefold, so that captions can be read
    assert IMG_SIZE == 32 and figure.shape[1] == 4 * (side + 4) - 4
    last = figure[16 : 16 + side : 3, -side::3]
    assert np.abs(last - pixels(unbroken / '00001.png')).max() <= 1


@pytest.mark.parametrize('batch_size', [1, 7])
def test_the_batch_size_changes_nothing_but_rounding(files, unbroken, tmp_path, batch_size):
    assert (
        MAIN([files.config, files.checkpoint, '--out', str(tmp_path), *OPTIONS, '--batch-size', str(batch_size)]) == 0
    )
    for index in range(NUM_IMAGES):
        assert np.abs(pixels(tmp_path / f'{index:05d}.png') - pixels(unbroken / f'{index:05d}.png')).max() <= 1


def test_another_seed_gives_other_images_and_their_number_does_not_matter(files, unbroken, tmp_path):
    few = [files.config, files.checkpoint, *OPTIONS, '--num-images', '2']
    assert MAIN([*few, '--out', str(tmp_path / 'same')]) == 0
    assert MAIN([*few, '--out', str(tmp_path / 'other'), '--seed', '1']) == 0
    for name in ('00000.png', '00001.png'):
        assert (tmp_path / 'same' / name).read_bytes() == (unbroken / name).read_bytes()
        assert (tmp_path / 'other' / name).read_bytes() != (unbroken / name).read_bytes()


@pytest.mark.long
def test_two_processes_write_the_same_files(files, unbroken, tmp_path):
    command = [
        str(TOOLS / 'dist_generate.sh'),
        files.config,
        files.checkpoint,
        '2',
        '--out',
        str(tmp_path / 'out'),
        *OPTIONS,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {'PYTHON': sys.executable}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / 'out') == contents(unbroken)


def test_a_killed_run_goes_on_to_the_same_files(files, unbroken, tmp_path):
    out = tmp_path / 'out'
    command = [files.config, files.checkpoint, '--out', str(out), *OPTIONS]
    running = subprocess.Popen(
        [sys.executable, str(TOOLS / 'generate.py'), *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (out / '00002.png').exists() and running.poll() is None:
        time.sleep(0.002)
    running.kill()
    running.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob('0*.png')}
    assert '00002.png' in kept
    (out / '00001.png').unlink()  # wherever the run was cut, a block that is half there
    (out / '.00003.png.77.part').write_bytes(b'half')
    assert MAIN(command) == 0
    assert contents(out) == contents(unbroken)
    assert all((out / name).stat().st_mtime_ns == when for name, when in kept.items() if name != '00001.png')


def test_blocks_are_the_same_for_any_number_of_processes_and_complete_ones_are_left_out(tmp_path):
    every = open_blocks(tmp_path, 7, 2, Process())
    assert every == [range(0, 2), range(2, 4), range(4, 6), range(6, 7)]
    shared = [open_blocks(tmp_path, 7, 2, Process(rank, rank, 3)) for rank in range(3)]
    assert sorted((block for blocks in shared for block in blocks), key=lambda block: block.start) == every
    for name in ('00000.png', '00001.png', '00002.png'):
        (tmp_path / name).touch()
    assert open_blocks(tmp_path, 7, 2, Process()) == every[1:]


def test_a_folder_of_other_settings_is_refused(files, unbroken, tmp_path, capsys):
    command = [files.config, files.checkpoint, '--out', str(unbroken), *OPTIONS]
    assert MAIN([*command, '--seed', '5']) == 1
    assert 'seed: 0, now 5' in capsys.readouterr().err
    (tmp_path / '00000.png').touch()
    assert MAIN([*command, '--out', str(tmp_path)]) == 1
    assert 'holds images but no generation.json' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--steps', '0'], 'steps must be at least 1'),
        (['--top-p', '1.5'], 'top_p must lie in'),
        (['--threads', '0'], '--threads must be at least 1'),
        (['--launcher', 'pytorch'], 'RANK, LOCAL_RANK, WORLD_SIZE are not set'),
        (['--ema'], 'holds no averaged weights'),
        (['--tokenizer', 'nowhere.pth'], 'nowhere.pth'),
    ],
)
def test_what_cannot_work_is_said_in_a_line(files, tmp_path, capsys, options, message):
    assert MAIN([files.config, files.checkpoint, '--out', str(tmp_path), *OPTIONS, *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob('*.png'))


def test_bfloat16_runs_the_tokenizer_in_it_and_gives_images(files, tmp_path):
    assert (
        MAIN(
            [
                files.config,
                files.checkpoint,
                '--out',
                str(tmp_path),
                '--num-images',
                '1',
                '--steps',
                '2',
                '--precision',
                'bf16',
            ]
        )
        == 0
    )
    assert pixels(tmp_path / '00000.png').std() > 1
    model = load_generator(Config.fromfile(files.config), files.checkpoint)
    inputs = (
        torch.zeros(1, 3, IMG_SIZE, IMG_SIZE),
        torch.zeros(1, 16, dtype=torch.int64),
        torch.ones(1, 16, dtype=torch.bool),
    )
    wanted = model.predict_logits(*inputs)
    with precision(model, 'fp32'):
        assert not torch.backends.cudnn.allow_tf32, 'fp32 is not TF32'
        assert model.tokenizer.encoder.mid.block_1.conv1.weight.is_contiguous()
    with precision(model, 'bf16'):
        assert model.tokenizer.decoder.conv_in.weight.dtype == torch.bfloat16
        got = model.predict_logits(*inputs)
    assert 1e-4 < (got - wanted).abs().max() < 0.1


def test_the_model_is_loaded_without_the_token_predictor(files):
    model = load_generator(Config.fromfile(files.config), files.checkpoint)
    assert sum(parameter.numel() for parameter in model.token_predictor.parameters()) < 20_000
    for ours, wanted in ((model, files.model), (model.tokenizer, files.model.tokenizer)):
        assert ours.state_dict().keys() == wanted.state_dict().keys()
        assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in ours.state_dict().items())


def published(model, *networks: str) -> dict[str, torch.Tensor]:
    """A file as released, with the named networks beside ADDP."""
    tensors = dict(model.state_dict())
    width, patch_px = tensors['pos_embed'].shape[-1], 3 * 8 * 8
    for name in ('decoder_pos_embed', 'pos_token_embed', 'pos_mask_embed'):
        tensors[name] = tensors['pos_embed']
    tensors.update({'decoder_pred.weight': torch.zeros(patch_px, width), 'decoder_pred.bias': torch.zeros(patch_px)})
    for name in networks:
        tensors.update({f'{name}.{key}': value for key, value in model.tokenizer.state_dict().items()})
    tensors['token_predictor.some.tensor'] = torch.zeros(3)
    return tensors


@pytest.mark.parametrize('networks', [('vqgan', 'token_predictor.vqgan'), ('token_predictor.vqgan',), ()])
def test_released_files_load_with_and_without_a_tokenizer(files, tmp_path, networks):
    torch.save(dict(model=published(files.model, *networks)), tmp_path / 'released.pth')
    cfg = Config.fromfile(files.config)
    if networks:
        cfg.model.init_cfg.tokenizer = 'this file does not exist.pth'
    model = load_generator(cfg, tmp_path / 'released.pth')
    assert torch.equal(model.cls_token, files.model.cls_token)
    assert torch.equal(model.tokenizer.codebook, files.model.tokenizer.codebook)


def test_the_tokenizer_option_goes_before_the_checkpoints_own(files, tmp_path):
    other = tiny_addp().tokenizer
    torch.nn.init.zeros_(other.codebook)
    save_with_prefix(other, 'tokenizer.', tmp_path / 'other.pth')
    torch.save(published(files.model, 'vqgan'), tmp_path / 'released.pth')
    model = load_generator(
        Config.fromfile(files.config), tmp_path / 'released.pth', tokenizer=str(tmp_path / 'other.pth')
    )
    assert not model.tokenizer.codebook.any()


def test_averaged_weights_are_taken_if_there_are_any(files, tmp_path):
    averaged = torch.load(files.checkpoint)['state_dict']
    last = {f'module.{name}': value + 1 for name, value in averaged.items()} | {'steps': torch.tensor(3)}
    torch.save(dict(state_dict=averaged, ema_state_dict=last), tmp_path / 'ema.pth')
    cfg = Config.fromfile(files.config)
    for ema, offset in ((None, 0), (True, 0), (False, 1)):
        assert torch.equal(load_generator(cfg, tmp_path / 'ema.pth', ema).cls_token, files.model.cls_token + offset)


def test_checkpoints_that_do_not_fit_or_exist_are_refused(files, tmp_path):
    cfg = Config.fromfile(files.config)
    tensors = torch.load(files.checkpoint)['state_dict']
    torch.save(
        dict(state_dict={name: value for name, value in tensors.items() if 'cls_token' not in name}),
        tmp_path / 'gap.pth',
    )
    with pytest.raises(CheckpointError, match=r'does not fit the model of [\s\S]*cls_token'):
        load_generator(cfg, tmp_path / 'gap.pth')
    with pytest.raises(CheckpointError, match='holds no checkpoint iter_'):
        load_generator(cfg, tmp_path)
    with pytest.raises(CheckpointError, match=r'addp-vit-base-16\.pth does not exist\. Get .*Changyao/ADDP'):
        load_generator(cfg, tmp_path / 'addp-vit-base-16.pth')
    with pytest.raises(CheckpointError, match='does not exist; give a released ADDP file'):
        load_generator(cfg, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match="trains 'TokenizerTraining', wanted a config of ADDP"):
        load_generator(Config(dict(model=dict(type='TokenizerTraining'))), files.checkpoint)


def test_images_that_are_not_finite_are_not_written():
    with pytest.raises(ValueError, match='not finite'):
        to_pil(torch.full((1, 3, 4, 4), torch.nan))


def test_pixels_are_truncated_as_published_but_whole_levels_survive_every_level():
    levels = torch.arange(256).float()
    tensor = (levels / 255).view(1, 1, 1, 256).expand(1, 3, 1, 256)
    assert np.array_equal(np.asarray(to_pil(tensor)[0])[0, :, 0], levels)
    between = np.asarray(to_pil(tensor + 0.9 / 255)[0])[0, :, 0]
    assert np.array_equal(between, levels)  # 255.9 is clamped


def test_fp32_generation_computes_convolutions_without_tf32(files, monkeypatch):
    monkeypatch.setattr(
        torch.backends.cudnn, 'allow_tf32', True
    )  # torch's default, which a test of a tool may have changed
    model = load_generator(Config.fromfile(files.config), files.checkpoint)
    for name, allowed in (('fp32', False), ('bf16', True)):
        with precision(model, name):
            assert torch.backends.cudnn.allow_tf32 is allowed and torch.backends.cudnn.enabled
    assert torch.backends.cudnn.allow_tf32 is True


def test_tensors_and_pil_images_turn_into_each_other():
    images = torch.randint(0, 256, (2, 3, 5, 7)).float() / 255
    assert torch.allclose(to_tensor(to_pil(images)), images)


def test_a_sheet_has_rows_gaps_and_captions():
    images = to_pil(torch.stack([torch.full((3, 8, 8), value) for value in (0.0, 0.2, 0.4)]))
    assert contact_sheet(images).size == (20, 20)
    assert contact_sheet(images, 3, ['a', 'b', 'c']).size == (3 * 96 + 8, 16 + 96)
    with pytest.raises(ValueError, match='a sheet needs at least one image'):
        contact_sheet([])


def test_grey_covers_exactly_the_masked_patches():
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True
    grey = grey_out(torch.ones(1, 3, 32, 32), mask)[0, 0] == 0.5
    assert grey[8:16, 8:16].all()
    assert int(grey.sum()) == 64


def test_going_on_with_another_batch_size_says_that_rounding_may_differ(files, unbroken, tmp_path, capsys):
    for path in unbroken.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    command = [files.config, files.checkpoint, '--out', str(tmp_path), *OPTIONS, '--batch-size', '3']
    assert MAIN(command) == 0
    assert 'computed otherwise' not in capsys.readouterr().err, 'nothing is missing'
    (tmp_path / '00001.png').unlink()
    assert MAIN(command) == 0
    assert 'computed otherwise (batch_size: 2, now 3)' in capsys.readouterr().err
