"""What the demo shows: the predictor's results, features of the very image, and patches under the pointer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_exports import save, write_detector, write_segmentor

from addp_backbone.predict.predictor import Predictor, UnreadableImageError
from experiments.demo.views import (
    MAX_SHOWN_PX,
    compute_features,
    draw_components,
    draw_similarity,
    feature_size,
    fit_to_screen,
    make_table,
    predict,
    read_upload,
)


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    config = write_detector(tmp_path_factory.mktemp('detector'))
    return Predictor(config, save(config), device='cpu')


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_a_prediction_is_the_predictors_with_the_threshold_of_the_page(detector: Predictor) -> None:
    pixels = noise(64, 96)
    overlay, table = predict(detector, pixels, 0.25)
    wanted = detector.predict_pixels(pixels).to_json()['objects']
    assert detector.score_thr == 0.25 and wanted and all(one['score'] >= 0.25 for one in wanted)
    assert [row[:2] for row in table.rows] == [[one['category'], round(one['score'], 3)] for one in wanted]
    assert overlay.width == 96 * 6, 'small images are enlarged'


@pytest.mark.parametrize('rgb', [True, False])
def test_features_are_what_the_backbone_computes_in_a_prediction(
    detector: Predictor, rgb: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector.model.data_preprocessor, '_channel_conversion', rgb)
    pixels, seen = noise(96, 96), []  # the size of the test pipeline: neither resized nor padded
    hook = detector.model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output[-1]))
    try:
        detector.predict_pixels(pixels)
    finally:
        hook.remove()
    np.testing.assert_allclose(compute_features(detector, pixels), seen[0][0].permute(1, 2, 0), rtol=1e-4, atol=1e-4)


def test_a_segmentor_shows_features_of_the_whole_image(tmp_path: Path) -> None:
    config = write_segmentor(tmp_path)
    assert compute_features(Predictor(config, save(config), device='cpu'), noise(30, 60)).shape == (4, 8, 24)


class Backbone:
    patch_size = 16

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ('backbone', 'longest', 'wanted'),
    [
        (Backbone(), 320, (320, 208)),
        (Backbone(), None, (640, 416)),
        (Backbone(), 4096, (1024, 656)),
        (Backbone(stride=32), 320, (320, 192)),
        (Backbone(grid=(4, 8)), 320, (128, 64)),
    ],
)
def test_features_have_whole_patches(backbone: Backbone, longest: int | None, wanted: tuple[int, int]) -> None:
    assert feature_size(backbone, (640, 410), longest) == wanted


def test_similarity_is_that_of_the_patch_under_the_pointer() -> None:
    tokens = np.zeros((2, 4, 2), np.float32)
    tokens[..., 0] = 1
    tokens[1, 2] = (0, 1)
    shown = Image.new('RGB', (80, 40))
    pixels = np.asarray(draw_similarity(tokens, shown, 59, 39)).astype(int)
    yellow, dark = pixels[22, 42], pixels[2, 2]  # inside the chosen patch, and far from it
    assert yellow[0] > 120 and yellow[1] > 120 and yellow[2] < 60 and dark[0] < 60
    draw_similarity(tokens, shown, 80, 40)  # the last pixel's edge is within the image


def test_components_have_a_square_for_each_patch_in_the_size_of_the_image() -> None:
    tokens = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)).numpy()
    pixels = np.asarray(draw_components(tokens, (50, 30)))
    assert pixels.shape == (30, 50, 3)
    assert (pixels.reshape(3, 10, 5, 10, 3) == pixels[::10, ::10][:, None, :, None]).all()


def test_an_image_is_read_as_a_viewer_shows_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (40, 20), 'red').save(tmp_path / 'a.jpg', exif=exif)
    assert read_upload(tmp_path / 'a.jpg').shape == (40, 20, 3)


def test_an_error_names_the_file_and_not_the_folder_it_was_uploaded_to(tmp_path: Path) -> None:
    (tmp_path / 'notes.png').write_text('no image')
    with pytest.raises(UnreadableImageError, match=r'^notes.png: is not an image$'):
        read_upload(tmp_path / 'notes.png')


def test_an_image_beyond_the_limits_is_refused(tmp_path: Path) -> None:
    Image.new('1', (5130, 20)).save(tmp_path / 'strip.png')
    with pytest.raises(UnreadableImageError, match='one side is'):
        read_upload(tmp_path / 'strip.png')


@pytest.mark.parametrize(
    ('size', 'wanted'), [((4000, 30), (MAX_SHOWN_PX, 10)), ((700, 20), (700, 20)), ((64, 32), (640, 320))]
)
def test_what_the_browser_gets_is_neither_huge_nor_tiny(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert fit_to_screen(Image.new('RGB', size)).size == wanted


def test_a_table_has_the_columns_of_its_task() -> None:
    box = dict(category='car', score=0.51239, bbox=[1.4, 2.6, 30.0, 4.0])
    assert make_table(dict(objects=[box])).rows == [['car', 0.512, '1 3 30 4']]
    assert make_table(dict(fractions={'sky': 0.75})).columns == ['class', 'share of pixels']
    assert make_table(dict(classes=[dict(category='cat', score=0.123456)])).rows == [['cat', 0.1235]]
