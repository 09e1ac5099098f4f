"""The documentation's gallery is made from a finished miniature, small, and says what is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_exports import save, write_detector, write_segmentor

from experiments.miniature.gallery import MAX_BYTES, GalleryError, make_gallery

DOCS = Path(__file__).parents[2] / 'docs'


@pytest.fixture(scope='module')
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the gallery reads of a miniature: scenes, configs, checkpoints of random weights, results."""
    folder = tmp_path_factory.mktemp('miniature')
    work, rng = folder / 'work', np.random.default_rng(0)
    for split, count in (('train', 2), ('val', 12)):
        (work / 'shapes' / 'images' / split).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(pixels).save(work / 'shapes' / 'images' / split / f'{index:06}.png')
    (work / 'configs').mkdir()
    (work / 'results').mkdir()
    for task, write, results in (
        ('det', write_detector, {'coco/bbox_mAP': 0.078, 'coco/segm_mAP': 0.1}),
        ('seg', write_segmentor, {'mIoU': 24.42}),
    ):
        config = write(folder)
        run = work / 'runs' / f'{task}_addp_0'
        run.mkdir(parents=True)
        shutil.move(save(config), run / 'iter_150.pth')
        shutil.move(config, work / 'configs' / f'shapes_{task}.py')
        (work / 'results' / f'{task}_addp_0.json').write_text(json.dumps(results))
    return work


def test_the_gallery_shows_both_tasks_and_tiles_with_what_was_measured(miniature: Path, tmp_path: Path) -> None:
    written = make_gallery(miniature, tmp_path / 'docs', 'cpu')
    assert [path.name for path in written] == ['detection.jpg', 'segmentation.jpg', 'tiles.jpg', 'gallery.md']
    text = ' '.join(written[-1].read_text().split())
    for linked in re.findall(r'!\[[^]]+\]\(([^)]+)\)', text):
        with Image.open(tmp_path / 'docs' / linked) as image:
            assert image.width > 800
    assert '2 training scenes, 150 iterations' in text and 'AP 7.8 of boxes and 10.0' in text and 'mIoU 24.4' in text
    assert '12 scenes in one image of 256 x 192 px' in text


def test_a_miniature_that_has_not_finished_is_named(miniature: Path, tmp_path: Path) -> None:
    work = tmp_path / 'work'
    shutil.copytree(miniature, work)
    shutil.rmtree(work / 'runs')
    with pytest.raises(GalleryError, match=r'no trained det model .*run make quickstart first'):
        make_gallery(work, tmp_path / 'docs', 'cpu')
    (work / 'results' / 'seg_addp_0.json').unlink()
    with pytest.raises(GalleryError, match='no results of both tasks'):
        make_gallery(work, tmp_path / 'docs', 'cpu')
    with pytest.raises(GalleryError, match='has 0 validation scenes, wanted 12'):
        make_gallery(tmp_path / 'nothing', tmp_path / 'docs', 'cpu')
    assert not (tmp_path / 'docs').exists()


def test_the_images_of_the_documentation_are_small() -> None:
    assert 0 < sum(path.stat().st_size for path in (DOCS / 'images' / 'gallery').iterdir()) <= MAX_BYTES
