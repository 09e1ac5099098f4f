"""One list of image endings, one PNG writer, one run-length coder, one pair of ImageNet constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coco_masks
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.datasets.folder import IMG_EXTENSIONS

from addp_backbone.files.images import (
    IMAGE_ENDINGS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PIXEL_MEAN,
    PIXEL_STD,
    encode_png,
    inspect_image,
    is_image_name,
    write_png,
)
from addp_backbone.files.run_length import encode_mask, encode_region

ROOT = Path(__file__).resolve().parents[3]


def test_the_endings_are_torchvisions_in_any_case() -> None:
    assert set(IMAGE_ENDINGS) == set(IMG_EXTENSIONS)
    assert is_image_name('a/B.JPeG') and not is_image_name('png') and not is_image_name('a.png.part')


def test_mean_and_deviation_are_timms_and_those_of_the_configs() -> None:
    assert (IMAGENET_MEAN, IMAGENET_STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    np.testing.assert_allclose(PIXEL_MEAN, 255 * np.array(IMAGENET_MEAN))
    np.testing.assert_allclose(PIXEL_STD, 255 * np.array(IMAGENET_STD))
    for name in ('det_configs/_base_/maskrcnn.py', 'seg_configs/_base_/upernet.py'):
        preprocessor = Config.fromfile(ROOT / name).model.data_preprocessor
        assert (tuple(preprocessor.mean), tuple(preprocessor.std)) == (PIXEL_MEAN, PIXEL_STD)


@pytest.mark.parametrize('shape', [(5, 7, 3), (5, 7)], ids=['rgb', 'grey'])
@pytest.mark.parametrize('as_image', [False, True], ids=['array', 'image'])
def test_a_png_holds_the_pixels_it_was_given(shape: tuple[int, ...], as_image: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_png(Image.fromarray(pixels) if as_image else pixels, tmp_path / 'new' / 'a.png')
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'new' / 'a.png')), pixels)
    assert (tmp_path / 'new' / 'a.png').read_bytes() == encode_png(pixels)
    assert inspect_image(tmp_path / 'new' / 'a.png').width == 7


@pytest.mark.parametrize('dtype', [np.bool_, np.uint8])
def test_a_run_length_code_decodes_to_its_mask(dtype: type) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (9, 4)).astype(dtype)
    code = encode_mask(mask)
    assert code['size'] == [9, 4] and isinstance(code['counts'], str)
    assert np.array_equal(coco_masks.decode(code), mask)


def test_a_region_has_the_code_of_the_whole_mask_also_where_it_touches_all_edges() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 9, 2)
        top, left = rng.integers(0, height), rng.integers(0, width)
        h, w = rng.integers(0, height - top + 1), rng.integers(0, width - left + 1)
        mask = np.zeros((height, width), bool)
        mask[top : top + h, left : left + w] = rng.random((h, w)) < rng.choice([0.0, 0.5, 1.0])
        region = mask[top : top + h, left : left + w]
        assert encode_region(region, int(left), int(top), (int(height), int(width))) == encode_mask(mask)
