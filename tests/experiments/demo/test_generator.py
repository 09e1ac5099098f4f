"""Generation and inpainting on the page: the same images as the commands make."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny_addp import IMG_SIZE, NUM_TOKENS, tiny_addp

from experiments.demo.generator import ImageGenerator
from experiments.demo.views import fit_to_screen
from pretrain.data.figures import contact_sheet, to_pil
from pretrain.generation.sampling import Sampling, image_generator
from pretrain.generation.trajectory import generate
from pretrain.weights.generator import precision

SAMPLING = Sampling(3)


@pytest.fixture(scope='module')
def generator() -> ImageGenerator:
    return ImageGenerator(tiny_addp())


def test_the_last_step_shows_the_images_of_the_command(generator: ImageGenerator) -> None:
    *earlier, last = generator.generate(2, 7, SAMPLING)
    with precision(generator.model, 'fp32'):
        wanted = generate(generator.model, 2, 3, generator=[image_generator(7, index) for index in range(2)])
    np.testing.assert_array_equal(np.asarray(last.sheet), np.asarray(fit_to_screen(contact_sheet(to_pil(wanted)))))
    assert [done.step for done in (*earlier, last)] == [1, 2, 3]
    assert NUM_TOKENS > earlier[0].num_masked > earlier[1].num_masked > last.num_masked == 0


def painted(left: int, top: int, right: int, bottom: int) -> Image.Image:
    layer = Image.new('RGBA', (512, 512), (0, 0, 0, 0))
    layer.paste((255, 60, 100, 255), (left, top, right, bottom))
    return layer


def test_only_painted_tokens_are_drawn_anew(generator: ImageGenerator) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (IMG_SIZE, IMG_SIZE, 3), np.uint8)
    image = Image.fromarray(pixels)
    shown = generator.fit_for_brush(image)
    assert shown.size == (512, 512)
    tokens = generator.brushed_tokens([painted(0, 0, 128, 128), painted(140, 10, 142, 12)])
    assert tokens.nonzero().flatten().tolist() == [0, 1], 'a thin stroke counts, too'
    sheet = generator.inpaint(image, tokens, 2, 0, SAMPLING, True)
    # before, mask and two results stand side by side under a caption; what is not painted is the image's own
    factor = sheet.width // (4 * (96 + 4) - 4)
    result = np.asarray(sheet.reduce(factor))[16:112, 200:296][::3, ::3]
    assert (result != pixels)[:8, :16].any() and (result == pixels)[8:].all() and (result == pixels)[:8, 16:].all()


def test_a_layer_may_have_another_resolution(generator: ImageGenerator) -> None:
    layer = painted(0, 0, 256, 512).resize((100, 100), Image.Resampling.NEAREST)
    assert generator.brushed_tokens([layer]).view(4, 4).tolist() == [[True, True, False, False]] * 4


def test_without_a_stroke_nothing_is_computed(generator: ImageGenerator) -> None:
    with pytest.raises(ValueError, match='nothing is painted: brush over'):
        generator.inpaint(Image.new('RGB', (50, 50)), generator.brushed_tokens([]), 1, 0, SAMPLING, False)
