"""The first step of every pipeline refuses what would be trained on wrongly without a word, and what never ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from addp_backbone.datasets.loading import LoadImage

WIDTH, HEIGHT = 24, 16
CLASSES = np.zeros((HEIGHT, WIDTH), np.uint8)


def load(folder: Path, **record: Any) -> dict[str, Any]:
    Image.new('RGB', (WIDTH, HEIGHT)).save(folder / 'a.png')
    return LoadImage()(dict(img_path=str(folder / 'a.png'), **record))


def test_an_image_of_another_size_than_its_coco_record_is_refused(tmp_path: Path) -> None:
    assert load(tmp_path, width=WIDTH, height=HEIGHT)['img_shape'] == (HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r'a\.png has 24 x 16 pixels, its record says 48 x 32'):
        load(tmp_path, width=2 * WIDTH, height=2 * HEIGHT)


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (CLASSES.T, 'has 16 x 24 pixels, its image 24 x 16'),
        (CLASSES[::2, ::2], 'has 12 x 8 pixels'),
        (np.stack([CLASSES] * 3, -1), 'has colours'),
        (CLASSES.astype(np.uint16) + 300, 'has values over 255, and labels are read in 8 bits'),
        (None, 'is not an image'),
    ],
)
def test_a_mask_of_another_size_or_kind_is_refused(mask: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / 'mask.png'
    path.touch()
    if mask is not None:
        Image.fromarray(np.ascontiguousarray(mask)).save(path)
    with pytest.raises((ValueError, OSError), match=rf'mask\.png {message}'):
        load(tmp_path, seg_map_path=str(path), reduce_zero_label=False)


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
def test_masks_of_8_and_16_bits_with_small_values_pass(kind: type, tmp_path: Path) -> None:
    Image.fromarray(CLASSES.astype(kind) + 5).save(tmp_path / 'mask.png')
    load(tmp_path, seg_map_path=str(tmp_path / 'mask.png'), reduce_zero_label=False)
    load(tmp_path, seg_map_path=str(tmp_path / 'missing.png'), reduce_zero_label=False)  # said where it is read


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'pipe.png')
    with pytest.raises(OSError, match=r'pipe\.png cannot be read: is a pipe or a device'):
        LoadImage()(dict(img_path=str(tmp_path / 'pipe.png')))
