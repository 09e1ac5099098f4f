"""Labels of the stored pixels of turned photographs are found where the size tells, and warned of elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from addp_backbone.datasets.coco import DetectionSplit, check_detection
from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.masks import SegmentationSplit, check_segmentation

# Stored size, orientation, size in the labels, and what is found.
CASES = [
    ((24, 16), 6, (16, 24), []),
    ((24, 16), 6, (24, 16), ['error']),
    ((24, 16), 5, (24, 16), ['error']),
    ((24, 16), 3, (24, 16), ['warning']),
    ((16, 16), 8, (16, 16), ['warning']),
    ((24, 16), 1, (24, 16), []),
]


def turned_image(path: Path, size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', size, (200, 10, 10)).save(path, exif=exif)


@pytest.mark.parametrize(('stored', 'orientation', 'labelled', 'levels'), CASES)
@pytest.mark.parametrize('ending', ['jpg', 'png', 'webp', 'tif'])
def test_boxes_of_turned_photographs(
    stored: tuple[int, int],
    orientation: int,
    labelled: tuple[int, int],
    levels: list[str],
    ending: str,
    tmp_path: Path,
) -> None:
    turned_image(tmp_path / f'a.{ending}', stored, orientation)
    content = dict(
        images=[dict(id=1, file_name=f'a.{ending}', width=labelled[0], height=labelled[1])],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 8, 8], area=64, iscrowd=0)],
        categories=[dict(id=1, name='red')],
    )
    (tmp_path / 'a.json').write_text(json.dumps(content))
    findings = Findings()
    check_detection([DetectionSplit('train', tmp_path / 'a.json', tmp_path)], findings)
    assert [entry.level for entry in findings.entries] == levels
    assert all('orientation' in entry.detail for entry in findings.entries)


@pytest.mark.parametrize(('stored', 'orientation', 'labelled', 'levels'), CASES)
def test_masks_of_turned_photographs(
    stored: tuple[int, int], orientation: int, labelled: tuple[int, int], levels: list[str], tmp_path: Path
) -> None:
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    turned_image(tmp_path / 'images' / 'a.jpg', stored, orientation)
    mask = Image.new('L', labelled, 1)
    mask.paste(2, (0, 0, 4, 4))
    mask.save(tmp_path / 'masks' / 'a.png')
    findings = Findings()
    check_segmentation([SegmentationSplit('train', tmp_path / 'images', tmp_path / 'masks')], ['a', 'b'], findings)
    assert [entry.level for entry in findings.entries] == levels
    assert all('orientation' in entry.detail for entry in findings.entries)
