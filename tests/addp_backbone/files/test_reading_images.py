"""Every reader sees an image as a viewer shows it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from PIL import Image

import addp_backbone  # noqa: F401  (registers LoadImage)
from addp_backbone.files.images import inspect_image, read_image, read_pixels

SHOWN = np.zeros((16, 24, 3), np.uint8)  # each corner has a colour of its own
SHOWN[:8, :12], SHOWN[:8, 12:], SHOWN[8:, :12] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
# How a camera stores what a viewer shows, by EXIF orientation (the standard's table, written out).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
FORMATS: dict[str, dict[str, Any]] = {
    'jpg': dict(quality=100, subsampling=0),
    'png': {},
    'webp': dict(lossless=True),
    'tif': {},
}


def save_turned(path: Path, orientation: int, shown: np.ndarray = SHOWN) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](shown))
    Image.fromarray(stored).save(path, exif=exif, **FORMATS[path.suffix[1:]])
    return path


@pytest.mark.parametrize('ending', FORMATS)
@pytest.mark.parametrize('orientation', STORED)
@pytest.mark.parametrize('square', [False, True])
def test_all_orientations_of_all_formats_show_the_same(
    ending: str, orientation: int, square: bool, tmp_path: Path
) -> None:
    shown = SHOWN[:, :16] if square else SHOWN
    path = save_turned(tmp_path / f'a.{ending}', orientation, shown)
    tolerance = 6 if ending == 'jpg' else 0
    for pixels in (read_pixels(path)[..., ::-1], np.asarray(read_image(path))):
        assert pixels.shape == shown.shape
        assert np.abs(pixels.astype(int) - shown).max() <= tolerance
    info = inspect_image(path)
    assert (info.height, info.width) == shown.shape[:2] and info.orientation == orientation and info.error is None


def image_of(name: str) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """What to save, what a viewer shows, and options of saving."""
    grey = np.asarray(Image.fromarray(SHOWN).convert('L'))
    as_grey = np.repeat(grey[..., None], 3, axis=2)
    hidden = np.dstack([SHOWN, np.where(grey > 100, 255, 0).astype(np.uint8)])
    on_white = np.where(hidden[..., 3:] > 0, SHOWN, 255).astype(np.uint8)
    opaque = Image.fromarray(SHOWN)
    other = Image.fromarray(SHOWN[::-1].copy())
    return {
        'grey.png': (Image.fromarray(grey), as_grey, {}),
        'grey16.png': (Image.fromarray(grey.astype(np.uint16) * 257), as_grey, {}),
        'grey16.tif': (Image.fromarray(grey.astype(np.uint16) * 257), as_grey, {}),
        'palette.png': (opaque.quantize(8), SHOWN, {}),
        'transparent.png': (Image.fromarray(hidden), on_white, {}),
        'transparent.webp': (Image.fromarray(hidden), on_white, dict(lossless=True)),
        'opaque.png': (opaque.convert('RGBA'), SHOWN, {}),
        'grey and alpha.png': (Image.fromarray(grey).convert('LA'), as_grey, {}),
        'one bit.png': (Image.fromarray(grey > 100), np.where(as_grey > 100, 255, 0), {}),
        'animated.png': (opaque, SHOWN, dict(save_all=True, append_images=[other])),
        'animated.webp': (opaque, SHOWN, dict(save_all=True, append_images=[other], lossless=True)),
        'animated.tif': (opaque, SHOWN, dict(save_all=True, append_images=[other])),
        'cmyk.tif': (opaque.convert('CMYK'), SHOWN, {}),
        'a.bmp': (opaque, SHOWN, {}),
        'a.ppm': (opaque, SHOWN, {}),
    }[name]


NAMES = [
    'grey.png', 'grey16.png', 'grey16.tif', 'palette.png', 'transparent.png', 'transparent.webp', 'opaque.png',
    'grey and alpha.png', 'one bit.png', 'animated.png', 'animated.webp', 'animated.tif', 'cmyk.tif', 'a.bmp', 'a.ppm',
]  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_every_kind_of_pixels_is_8_bit_rgb(name: str, tmp_path: Path) -> None:
    image, shown, options = image_of(name)
    image.save(tmp_path / name, **options)
    assert np.array_equal(read_pixels(tmp_path / name)[..., ::-1], shown)
    assert np.array_equal(np.asarray(read_image(tmp_path / name)), shown)
    assert inspect_image(tmp_path / name).error is None


def test_a_colour_png_of_16_bits_is_scaled(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / 'a.png'), SHOWN[..., ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_pixels(tmp_path / 'a.png')[..., ::-1], SHOWN)
    assert np.array_equal(np.asarray(read_image(tmp_path / 'a.png')), SHOWN)


def bitmap(bits: int, masks: tuple[int, int, int], values: np.ndarray) -> bytes:
    """A BMP whose header says which bits of a value are red, green and blue."""
    size = (values.shape[1], -values.shape[0])  # rows from the top
    header = struct.pack('<IiiHHIIiiII3I', 40, *size, 1, bits, 3, values.nbytes, 0, 0, 0, 0, *masks)
    return struct.pack('<2sIHHI', b'BM', 66 + values.nbytes, 0, 0, 66) + header + values.tobytes()


def test_values_are_scaled_as_the_header_of_a_file_says(tmp_path: Path) -> None:
    levels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    rgb = np.stack([levels, levels[::-1], levels.T], axis=-1)
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), 2, 0)
    files = {
        'a.ppm': b'P6 4 4 15 ' + rgb.tobytes(),
        'a.pgm': b'P5 4 4 15 ' + levels.tobytes(),
        '565.bmp': bitmap(16, (0xF800, 0x7E0, 0x1F), (red << 12 | green << 7 | blue << 1).astype(np.uint16)),
        '32.bmp': bitmap(32, (0xFF000000, 0xFF0000, 0xFF00), red << 28 | green << 20 | blue << 12),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        shown = rgb if name != 'a.pgm' else levels[..., None].repeat(3, axis=2)
        pixels = read_pixels(tmp_path / name)[..., ::-1]
        assert np.array_equal(pixels, np.asarray(read_image(tmp_path / name))), name
        assert np.abs(pixels - 17.0 * shown).max() <= 16, name  # 4 bits within the 5, 6 and 8 of a BMP


@pytest.mark.parametrize('dtype', [np.float32, np.int32])
def test_32_bits_are_refused_by_check_and_readers_alike(dtype: type, tmp_path: Path) -> None:
    Image.fromarray(SHOWN[..., 0].astype(dtype)).save(tmp_path / 'a.tif')
    assert '32 bits' in str(inspect_image(tmp_path / 'a.tif').error)
    for read in (read_image, read_pixels):
        with pytest.raises(OSError, match='32 bits'):
            read(tmp_path / 'a.tif')
    with pytest.raises(OSError, match=r'a\.tif cannot be read: .*32 bits'):
        TRANSFORMS.build(dict(type='LoadImage'))(dict(img_path=str(tmp_path / 'a.tif')))


@pytest.mark.parametrize('quality', [30, 75, 95])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('ending', ['jpg', 'png', 'webp'])
def test_ordinary_files_have_the_values_that_mmcv_reads(quality: int, mode: str, ending: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(quality).integers(0, 255, (37, 53, 3), dtype=np.uint8)
    path = tmp_path / f'a.{ending}'
    Image.fromarray(noise).convert(mode).save(path, **({} if ending == 'png' else dict(quality=quality)))
    theirs = mmcv.imfrombytes(path.read_bytes(), flag='color', backend='cv2')
    results = TRANSFORMS.build(dict(type='LoadImage'))(dict(img_path=str(path)))
    assert np.array_equal(results['img'], theirs)
    assert results['img_shape'] == results['ori_shape'] == (37, 53) and results['img'].flags.c_contiguous
