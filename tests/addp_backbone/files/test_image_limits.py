"""Limits on the size that an image file declares: known before anything is decoded, wherever images are read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from addp_backbone.datasets.loading import LoadImage
from addp_backbone.files.image_limits import (
    MAX_ASPECT_VARIABLE,
    MAX_PIXELS_VARIABLE,
    ImageSizeError,
    check_image_size,
    size_limits,
)
from addp_backbone.files.images import inspect_image, read_image, read_mask, read_pixels


def write_bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that declares a size and holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')
    )
    return path


@pytest.mark.parametrize(
    ('size', 'message'), [((13000, 13000), '169.0 megapixels'), ((5000, 1), 'one side is 5000 times')]
)
def test_every_reader_refuses_a_declared_size_beyond_the_limits(
    size: tuple[int, int], message: str, tmp_path: Path
) -> None:
    bomb = write_bomb(tmp_path / 'bomb.png', *size)
    for reader in (read_image, read_pixels, read_mask):
        with pytest.raises(ImageSizeError, match=message):
            reader(bomb)
    assert message in (inspect_image(bomb).error or '')
    with pytest.raises(OSError, match=f'bomb.png .*{message}'):
        LoadImage()({'img_path': str(bomb)})


def test_a_variable_raises_a_limit_and_pillows_own_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((1, 600), np.uint8)).save(tmp_path / 'strip.png')
    assert 'ADDP_MAX_ASPECT_RATIO=600' in (inspect_image(tmp_path / 'strip.png').error or '')
    monkeypatch.setenv(MAX_ASPECT_VARIABLE, '600')
    assert inspect_image(tmp_path / 'strip.png').width == 600
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    assert read_image(tmp_path / 'strip.png').size == (600, 1)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, '500')
    assert 'ADDP_MAX_IMAGE_PIXELS=600' in (inspect_image(tmp_path / 'strip.png').error or '')
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, 'inf')
    check_image_size(10**6, 10**6)


def test_102_megapixels_and_a_strip_of_one_to_250_are_allowed() -> None:
    check_image_size(11648, 8736)
    check_image_size(8, 2000)


def test_what_pillow_refuses_by_itself_names_the_variable_too(tmp_path: Path) -> None:
    error = inspect_image(write_bomb(tmp_path / 'bomb.png', 60000, 60000)).error or ''
    assert 'more pixels than the limit, which ADDP_MAX_IMAGE_PIXELS sets' in error


@pytest.mark.parametrize('value', ['many', '0', '-1', 'nan'])
def test_a_limit_that_is_no_number_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, value)
    with pytest.raises(ValueError, match=f"ADDP_MAX_IMAGE_PIXELS is '{value}'"):
        size_limits()
