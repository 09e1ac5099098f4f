"""tools/edit.py and pretrain/generation/editing.py: parts of an image drawn anew."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from generator_files import GeneratorFiles, write_generator_files
from PIL import Image
from tiny_addp import IMG_SIZE, NUM_TOKENS

from pretrain.data.figures import to_tensor
from pretrain.generation.editing import (
    edit,
    edit_figure,
    fit,
    mask_as_grey,
    mask_of_boxes,
    shrink,
    tokens_of_mask,
)
from pretrain.generation.sampling import Sampling, image_generator
from pretrain.generation.trajectory import trajectory

MAIN = runpy.run_path(str(Path(__file__).parents[3] / 'tools' / 'edit.py'))['main']
PATCH_PX = 8
FEW_STEPS = Sampling(3)


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> GeneratorFiles:
    return write_generator_files(tmp_path_factory.mktemp('generator'))


@pytest.fixture(autouse=True)
def same_number_of_threads() -> Iterator[None]:
    """The tool sets it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (IMG_SIZE, IMG_SIZE, 3), dtype=np.uint8))


def as_grid(tokens: torch.Tensor) -> list[list[int]]:
    return tokens.view(4, 4).int().tolist()


def test_a_box_masks_every_token_it_touches(files):
    size = (IMG_SIZE, IMG_SIZE)
    exactly = tokens_of_mask(mask_of_boxes([(8, 0, 24, 8)], size), size, files.model)
    assert as_grid(exactly) == [[0, 1, 1, 0], [0] * 4, [0] * 4, [0] * 4]
    touching = tokens_of_mask(mask_of_boxes([(7, 15, 9, 17)], size), size, files.model)
    assert as_grid(touching) == [[0] * 4, [1, 1, 0, 0], [1, 1, 0, 0], [0] * 4]
    two = mask_of_boxes([(0, 0, 8, 8), (24, 24, 32, 32)], size)
    assert tokens_of_mask(two, size, files.model).nonzero().flatten().tolist() == [0, 15]
    assert (~tokens_of_mask(two, size, files.model, invert=True)).nonzero().flatten().tolist() == [0, 15]


def test_boxes_are_in_pixels_of_the_original_image(files):
    """An image of 128 x 64 px is halved and its middle taken: 64 px of its width are 16 too many on each side."""
    size = (128, 64)
    tokens = tokens_of_mask(mask_of_boxes([(32, 0, 48, 64)], size), size, files.model)
    assert as_grid(tokens) == [[1, 0, 0, 0]] * 4


def test_masks_and_boxes_that_do_not_fit_are_refused(files):
    with pytest.raises(ValueError, match='the mask is 9 x 8 pixels, the image 8 x 9'):
        tokens_of_mask(Image.new('L', (9, 8)), (8, 9), files.model)
    for box in ((0, 0, 33, 5), (5, 5, 5, 9), (-1, 0, 4, 4)):
        with pytest.raises(ValueError, match='is empty or lies outside of the image'):
            mask_of_boxes([box], (32, 32))
    for border_px in (0, 5, 16):
        with pytest.raises(ValueError, match='the border must be a multiple of 8 px under 16'):
            shrink(Image.new('RGB', (40, 40)), border_px, files.model)


def test_fitting_keeps_the_centre(image):
    wide = Image.new('RGB', (3 * IMG_SIZE, IMG_SIZE))
    wide.paste(image, (IMG_SIZE, 0))
    assert np.array_equal(np.asarray(fit(wide, IMG_SIZE)), np.asarray(image))


def test_outpainting_keeps_the_shrunk_image_and_draws_the_border(files, image):
    canvas, border = shrink(image, PATCH_PX, files.model)
    assert as_grid(border) == [[1] * 4, [1, 0, 0, 1], [1, 0, 0, 1], [1] * 4]
    inner = canvas.crop((8, 8, 24, 24))
    assert np.array_equal(np.asarray(inner), np.asarray(fit(image, 16)))


def test_an_edit_keeps_unmasked_tokens_and_depends_on_seed_and_index_only(files, image):
    mask = torch.arange(NUM_TOKENS) % 3 == 0
    three = edit(files.model, image, mask, 3, 7, FEW_STEPS)
    again = edit(files.model, image, mask, 1, 7, FEW_STEPS)
    assert (three.results[0] - again.results[0]).abs().max() <= 1 / 255
    assert (three.results[0] - three.results[1]).abs().max() > 1 / 255
    tokens = files.model.tokenizer.encode(three.before).tokens[0]
    *_, last = trajectory(files.model, 1, FEW_STEPS, [image_generator(7, 0)], three.before, mask)
    assert torch.allclose(last.images.clamp(0, 1), again.results, atol=1e-5)
    assert torch.equal(last.tokens[0][~mask], tokens[~mask])


def test_variations_mask_their_ratio_each_with_its_own_tokens(files, image):
    done = edit(files.model, image, 0.6, 3, 0, FEW_STEPS)
    assert done.mask.sum(1).tolist() == [10] * 3  # ceil(0.6 * 16)
    assert len({tuple(row) for row in done.mask.tolist()}) == 3
    assert edit_figure(done).size == (3 * (96 + 4) - 4, 3 * (96 + 20) - 4)  # enlarged from 32 px, for the captions


def test_an_empty_mask_gives_the_reconstruction_and_pasting_the_image_itself(files, image):
    nothing = torch.zeros(NUM_TOKENS, dtype=torch.bool)
    before = to_tensor([image])
    reconstruction = files.model.tokenizer.decode(files.model.tokenizer.encode(before).latents).clamp(0, 1)
    assert torch.allclose(edit(files.model, image, nothing, 1, 0, FEW_STEPS).results, reconstruction, atol=1e-5)
    assert torch.equal(edit(files.model, image, nothing, 1, 0, FEW_STEPS, paste=True).results, before)


def test_pasting_puts_pixels_back_outside_of_the_mask_only(files, image):
    mask = torch.zeros(NUM_TOKENS, dtype=torch.bool)
    mask[0] = True
    plain, pasted = (edit(files.model, image, mask, 1, 0, FEW_STEPS, paste=paste).results[0] for paste in (False, True))
    assert torch.equal(plain[:, :8, :8], pasted[:, :8, :8])
    assert torch.equal(pasted[:, 8:], to_tensor([image])[0, :, 8:])


@pytest.mark.parametrize(
    ('options', 'num_masked'),
    [
        (['--box', '0', '0', '16', '8'], 2),
        (['--box', '0', '0', '16', '8', '--invert'], 14),
        (['--mask', 'mask.png'], 4),
        (['--outpaint', '8'], 12),
        (['--ratio', '0.5'], 8),
    ],
)
def test_the_tool_writes_before_masks_results_and_all_side_by_side(
    files, image, tmp_path, monkeypatch, capsys, options, num_masked
):
    monkeypatch.chdir(tmp_path)
    image.save('image.png')
    mask_of_boxes([(8, 8, 24, 24)], image.size).save('mask.png')
    assert (
        MAIN(
            [
                files.config,
                files.checkpoint,
                'image.png',
                '--out',
                'out',
                '--steps',
                '2',
                '--num-results',
                '2',
                *options,
            ]
        )
        == 0
    )
    assert f'{num_masked} of 16 tokens' in capsys.readouterr().out
    wanted = {'before.png', 'edit.png', 'mask_00.png', 'mask_01.png', 'result_00.png', 'result_01.png'}
    assert {path.name for path in Path('out').iterdir()} == wanted


def test_the_tool_names_what_is_wrong(files, image, tmp_path, capsys):
    image.save(tmp_path / 'p.png')
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'p.png').read_bytes()[:-600])
    Image.fromarray(np.eye(IMG_SIZE, dtype=np.uint8)).save(tmp_path / 'ones.png')
    command = [files.config, files.checkpoint, '--out', str(tmp_path / 'out'), '--steps', '2']
    for options, message in (
        ([str(tmp_path / 'text.png'), '--ratio', '0.5'], 'cannot identify image file'),
        ([str(tmp_path / 'none.png'), '--ratio', '0.5'], 'none.png'),
        ([str(tmp_path / 'cut.png'), '--ratio', '0.5'], 'cut.png cannot be read'),
        (
            [str(tmp_path / 'p.png'), '--mask', str(tmp_path / 'ones.png')],
            'the brightest pixel of the mask is 1 of 255',
        ),
        ([str(tmp_path / 'p.png'), '--ratio', '1.5'], 'a mask ratio must lie in [0, 1], got 1.5'),
    ):
        assert MAIN([*command, *options]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_the_tool_says_that_a_mask_covers_nothing(files, image, tmp_path, capsys):
    image.resize((640, 640)).save(tmp_path / 'large.png')
    assert (
        MAIN(
            [
                files.config,
                files.checkpoint,
                str(tmp_path / 'large.png'),
                '--out',
                str(tmp_path / 'out'),
                '--steps',
                '2',
                '--box',
                '0',
                '0',
                '4',
                '4',
            ]
        )
        == 0
    )
    assert 'the mask covers no pixel' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['grey', 'one bit', '16 bits', 'opaque', 'white on transparent', 'red brush', 'hole'])
def test_a_mask_is_read_in_the_ways_in_which_editors_write_it(kind):
    painted = np.zeros((6, 8), bool)
    painted[2:4, 3:7] = True
    value = np.where(painted, 255, 0).astype(np.uint8)
    white, black = np.full((6, 8), 255, np.uint8), np.zeros((6, 8), np.uint8)
    mask = {
        'grey': lambda: Image.fromarray(value),
        'one bit': lambda: Image.fromarray(painted),
        '16 bits': lambda: Image.fromarray(value.astype(np.uint16) * 257),
        'opaque': lambda: Image.fromarray(np.dstack([value, value, value, white])),
        'white on transparent': lambda: Image.fromarray(np.dstack([white, white, white, value])),
        'red brush': lambda: Image.fromarray(np.dstack([value, black, black, value])),
        'hole': lambda: Image.fromarray(np.dstack([black, black, black, 255 - value])),  # OpenAI's convention
    }[kind]()
    assert np.array_equal(np.asarray(mask_as_grey(mask)) >= 128, painted)


def test_a_cut_run_of_the_tool_goes_on_to_the_same_bits_and_replaces_what_other_arguments_made(
    files, image, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr('pretrain.generation.edit_run.BATCH_SIZE', 2)
    image.save(tmp_path / 'image.png')
    command = [files.config, files.checkpoint, str(tmp_path / 'image.png'), '--ratio', '0.5', '--steps', '2']
    command += ['--out', str(tmp_path / 'out'), '--num-results', '3']
    assert MAIN(command) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    when = (tmp_path / 'out' / 'result_00.png').stat().st_mtime_ns
    (tmp_path / 'out' / 'mask_02.png').unlink()
    (tmp_path / 'out' / 'edit.png').unlink()
    assert MAIN(command) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == whole
    assert (tmp_path / 'out' / 'result_00.png').stat().st_mtime_ns == when
    assert '2 results of the same arguments were there already' in capsys.readouterr().out
    assert MAIN([*command, '--seed', '1']) == 0
    assert 'note: 3 results of other arguments were replaced' in capsys.readouterr().err
    assert (tmp_path / 'out' / 'result_00.png').read_bytes() != whole['result_00.png']


def test_results_of_a_later_batch_are_those_of_their_numbers(files, image):
    every = edit(files.model, image, 0.5, 3, 0, FEW_STEPS)
    later = edit(files.model, image, 0.5, 2, 0, FEW_STEPS, first=1)
    assert torch.equal(later.mask, every.mask[1:])
    torch.testing.assert_close(later.results, every.results[1:])
