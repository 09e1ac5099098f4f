"""Damaged image files from a seed: bytes flipped, cut, spliced, and other sizes declared, in all formats."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

FORMATS = {
    'jpg': dict(format='JPEG', quality=85),
    'progressive.jpg': dict(format='JPEG', progressive=True),
    'png': dict(format='PNG'),
    'palette.png': dict(format='PNG'),
    'grey16.png': dict(format='PNG'),
    'tif': dict(format='TIFF', compression='tiff_lzw'),
    'raw.tif': dict(format='TIFF'),
    'jpeg.tif': dict(format='TIFF', compression='jpeg'),
    'webp': dict(format='WEBP', quality=80),
    'lossless.webp': dict(format='WEBP', lossless=True),
    'gif': dict(format='GIF'),
    'bmp': dict(format='BMP'),
}
SIZES = (0, 1, 2, 255, 2000, 5000, 40000, 65535, 2**31 - 1, 2**32 - 1)


def whole_files(seed: int = 0) -> dict[str, bytes]:
    """A file of each format, by its ending."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    pixels[8:30, 10:50] = (200, 30, 30)
    files = {}
    exif = Image.Exif()
    exif[0x0112] = 6
    for ending, options in FORMATS.items():
        image = Image.fromarray(pixels)
        if ending == 'palette.png':
            image = image.quantize(32)
        elif ending == 'grey16.png':
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        buffer = io.BytesIO()
        image.save(buffer, **options, **({'exif': exif} if ending in ('jpg', 'png', 'webp', 'tif') else {}))
        files[ending] = buffer.getvalue()
    return files


def mutated_files(number: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """``number`` damaged files: name with its ending, content; formats and kinds of damage take turns."""
    rng = np.random.default_rng(seed)
    whole = whole_files()
    endings, kinds = list(whole), (_flip, _cut, _splice, _declare)
    for index in range(number):
        ending, kind = endings[index % len(endings)], kinds[index // len(endings) % len(kinds)]
        other = whole[endings[rng.integers(len(endings))]]
        yield f'{index:04d}{kind.__name__}.{ending}', bytes(kind(bytearray(whole[ending]), other, rng))


def _flip(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    """Other values for 1 to 20 bytes, half the time near the beginning."""
    end = len(content) if rng.random() < 0.5 else min(200, len(content))
    for place in rng.integers(0, end, rng.integers(1, 21)):
        content[place] = rng.integers(256)
    return content


def _cut(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    """An end or a piece from the middle is missing."""
    start = rng.integers(len(content))
    stop = len(content) if rng.random() < 0.5 else rng.integers(start, len(content) + 1)
    del content[start:stop]
    return content


def _splice(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    """A piece of another file instead of one's own."""
    start, length, place = rng.integers(len(other)), rng.integers(1, 400), rng.integers(len(content))
    content[place : place + rng.integers(0, 400)] = other[start : start + length]
    return content


def _declare(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    """Another width and height in the header."""
    width, height = (int(SIZES[i]) for i in rng.integers(0, len(SIZES), 2))
    if content[1:4] == b'PNG':
        content[16:24] = struct.pack('>II', width, height)
        content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    elif content[:2] == b'\xff\xd8':
        place = max(content.find(b'\xff\xc0'), content.find(b'\xff\xc2'))
        content[place + 5 : place + 9] = struct.pack('>HH', height % 65536, width % 65536)
    elif content[:3] == b'GIF':
        for place in (6, content.find(b'\x2c') + 5):
            content[place : place + 4] = struct.pack('<HH', width % 65536, height % 65536)
    elif content[:2] == b'BM':
        content[18:26] = struct.pack('<II', width, height)
    elif content[:2] in (b'II', b'MM'):
        order = '<' if content[:2] == b'II' else '>'
        for tag, value in ((256, width), (257, height)):
            place = content.find(struct.pack(f'{order}H', tag), 8)
            content[place + 2 : place + 12] = struct.pack(f'{order}HII', 4, 1, value)
    else:  # WebP: the 14 bits of VP8's sides, or 28 bits of both in VP8L
        place = content.find(b'\x9d\x01\x2a') + 3
        place = place if place > 2 else content.find(b'VP8L') + 9
        content[place : place + 4] = struct.pack('<HH', width % 65536, height % 65536)
    return content
