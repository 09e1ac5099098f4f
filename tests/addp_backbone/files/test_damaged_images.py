"""Damaged image files (flipped, cut, spliced, other sizes declared): a result or a clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mutated_images import FORMATS, mutated_files, whole_files

from addp_backbone.files.image_limits import MAX_PIXELS_VARIABLE
from addp_backbone.files.images import DECODING_ERRORS, inspect_image, read_image, read_mask, read_pixels


@pytest.mark.filterwarnings('ignore')
def test_each_reader_gives_pixels_or_one_of_the_errors_that_everything_catches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, '4e6')
    num_read = 0
    for name, content in mutated_files(4 * len(FORMATS)):
        path = tmp_path / name
        path.write_bytes(content)
        info = inspect_image(path)
        for reader in (read_image, read_pixels):
            try:
                pixels = np.asarray(reader(path))
            except DECODING_ERRORS as error:
                assert info.error or str(error), name
            else:
                assert pixels.dtype == np.uint8
                assert info.error or pixels.shape == (info.height, info.width, 3), name
                num_read += 1
        try:
            read_mask(path)
        except ValueError as error:
            assert str(error)
    assert num_read >= 4, 'some damage is harmless'


def test_undamaged_files_of_every_format_are_read(tmp_path: Path) -> None:
    for ending, content in whole_files().items():
        (tmp_path / f'a.{ending}').write_bytes(content)
        assert inspect_image(tmp_path / f'a.{ending}').error is None, ending
