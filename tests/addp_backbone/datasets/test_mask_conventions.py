"""What values in masks mean is decided by all masks or asked for, shown as a table, and converted on request."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine import Config
from mmengine.registry import DefaultScope
from PIL import Image

from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.mask_conversion import MaskConversion, read_mapping
from addp_backbone.datasets.masks import SegmentationSplit, check_segmentation, read_classes

ROOT = Path(__file__).parents[3]
MAIN = runpy.run_path(str(ROOT / 'tools' / 'new_dataset.py'))['main']
BASE = ['--base', str(ROOT / 'seg_configs' / 'addp_tiny_upernet_128px.py')]
SCENE = np.zeros((32, 48), np.int64)  # background, two objects, and a seam of void
SCENE[4:20, 5:20], SCENE[10:28, 26:42] = 1, 2
SEAM = np.zeros(SCENE.shape, bool)
SEAM[4, 5:20] = SEAM[27, 26:42] = True


def write_set(folder: Path, masks: list[np.ndarray], **options: Any) -> SegmentationSplit:
    for name in ('images', 'masks'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index, mask in enumerate(masks):
        Image.fromarray(np.full((*mask.shape[:2], 3), 60 + index, np.uint8)).save(folder / 'images' / f'{index}.jpg')
        image = Image.fromarray(mask.astype(options.get('dtype', np.uint8)))
        image.save(folder / 'masks' / f'{index}{options.get("ending", ".png")}')
    return SegmentationSplit('train', folder / 'images', folder / 'masks')


def judge(folder: Path, masks: list[np.ndarray], num_classes: int) -> tuple[str, list[str], tuple[str, ...]]:
    findings = Findings()
    data = check_segmentation([write_set(folder, masks)], [f'c{i}' for i in range(num_classes)], findings)
    return data.void, [f'{e.level} {e.kind}: {e.detail}' for e in findings.entries], data.table


def test_classes_from_0_with_the_last_value_as_void_are_asked_about(tmp_path: Path) -> None:
    _, found, table = judge(tmp_path, [np.where(SEAM, 3, SCENE)] * 4, 3)
    assert any('void convention unclear' in line and '--void last' in line and '0.png' in line for line in found)
    assert table[1].split()[:3] == ['0', 'void', '(left'] and table[-1].split()[0] == '3'


def test_one_stray_pixel_does_not_decide(tmp_path: Path) -> None:
    stray = SCENE.copy()
    stray[0, 0] = 3
    _, found, _ = judge(tmp_path, [*[SCENE] * 19, stray], 3)
    assert any('void convention unclear' in line and 'only 1 pixels in 1 masks: strays?' in line for line in found)


def test_a_thin_seam_of_0_in_every_mask_is_void(tmp_path: Path) -> None:
    void, found, _ = judge(tmp_path, [np.where(SEAM, 0, SCENE + 1)] * 4, 3)
    assert (void, found) == ('zero', [])


def test_a_background_of_0_that_the_list_does_not_name_is_asked_about_with_its_share(tmp_path: Path) -> None:
    _, found, _ = judge(tmp_path, [SCENE] * 4, 2)
    assert any('--void background' in line and f'{(SCENE == 0).mean():.1%}' in line for line in found)


def test_masks_of_another_ending_are_found_and_floating_point_is_called_what_it_is(tmp_path: Path) -> None:
    split = write_set(tmp_path, [SCENE] * 2, ending='_labels.png')
    findings = Findings()
    check_segmentation([split], ['a', 'b', 'c'], findings)
    missing = [entry.detail for entry in findings.entries if entry.kind == 'mask missing']
    assert missing[0] == 'does not exist; there is 0_labels.png: give --mask-suffix _labels.png'
    split = write_set(tmp_path / 'float', [SCENE] * 2, dtype=np.float32, ending='.tif')
    findings = Findings()
    check_segmentation([split], ['a', 'b', 'c'], findings, mask_suffix='.tif')
    assert all('floating-point pixels' in entry.detail for entry in findings.entries if entry.level == 'error')
    assert findings.num_errors == 2


def test_black_and_white_masks_are_asked_about(tmp_path: Path) -> None:
    _, found, _ = judge(tmp_path, [np.where(SCENE > 0, 255, 0)] * 4, 2)
    assert any('--convert binary' in line for line in found)


@pytest.mark.parametrize('ending', ['.jpg', '.png'])
def test_lossy_masks_are_refused_whatever_their_name(ending: str, tmp_path: Path) -> None:
    split = write_set(tmp_path, [SCENE])
    Image.fromarray(SCENE.astype(np.uint8)).save(split.mask_dir / f'0{ending}', format='JPEG')
    findings = Findings()
    check_segmentation([split], ['a', 'b', 'c'], findings, mask_suffix=ending)
    assert [e for e in findings.entries if 'is a JPEG' in e.detail]


def labels_of(leaf: Path) -> np.ndarray:
    config = Config.fromfile(leaf)
    config.val_dataloader.dataset.pipeline = [
        dict(type='LoadImage'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    with DefaultScope.overwrite_default_scope('mmseg'):
        from mmseg.registry import DATASETS

        return DATASETS.build(config.val_dataloader.dataset)[0]['data_samples'].gt_sem_seg.data[0].numpy()


COLOURS = np.array([(0, 0, 0), (200, 30, 30), (30, 30, 200)], np.uint8)
# name: masks, class list, options, labels that training must see
CONVERSIONS: dict[str, Any] = {
    'last': (np.where(SEAM, 3, SCENE), ['a', 'b', 'c'], ['--void', 'last'], np.where(SEAM, 255, SCENE)),
    'background': (SCENE, ['b', 'c'], ['--void', 'background'], SCENE),
    'zero': (SCENE, ['b', 'c'], ['--void', 'zero'], np.where(SCENE == 0, 255, SCENE - 1)),
    'binary': (np.where(SCENE > 0, 255, 0), ['a', 'b'], ['--convert', 'binary'], np.minimum(SCENE, 1)),
    'map': (SCENE * 100, ['a', 'b', 'c'], ['--map', '100=1', '200=2'], SCENE),
    'map to void': (SCENE, ['a', 'b'], ['--map', '2=void'], np.where(SCENE == 2, 255, SCENE)),
    'colours': (
        COLOURS[SCENE],
        dict(classes=['a', 'b', 'c'], palette=COLOURS.tolist()),
        ['--convert', 'colours'],
        SCENE,
    ),
}


@pytest.mark.parametrize('name', CONVERSIONS)
def test_one_option_makes_training_see_the_right_labels(name: str, tmp_path: Path) -> None:
    masks, classes, options, wanted = CONVERSIONS[name]
    split = write_set(tmp_path, [masks] * 3)
    before = {path: path.read_bytes() for path in split.mask_dir.iterdir()}
    (tmp_path / 'classes.json').write_text(json.dumps(classes))
    args = ['--classes', tmp_path / 'classes.json', '--train-images', split.image_dir, '--train-masks', split.mask_dir]
    assert MAIN(['seg', '--out', str(tmp_path / 'leaf.py'), *map(str, args), *options, *BASE]) == 0
    assert np.array_equal(labels_of(tmp_path / 'leaf.py'), wanted)
    assert {path: path.read_bytes() for path in split.mask_dir.iterdir()} == before
    assert Image.open(tmp_path / 'leaf_overlays.png').size[1] > 240


@pytest.mark.parametrize(
    ('mask', 'conversion', 'message'),
    [
        (COLOURS[SCENE], MaskConversion('colours', COLOURS[:2].tolist()), r'colours of no class: \(30, 30, 200\)'),
        (COLOURS[SCENE], MaskConversion('colours', [[0, 0, 0]] * 2), 'one colour'),
        (COLOURS[SCENE], MaskConversion('binary'), 'has colours'),
        (SCENE * 200, MaskConversion('', (), {200: 1}), 'from 0 to 400'),
    ],
)
def test_what_cannot_be_converted_is_named(
    mask: np.ndarray, conversion: MaskConversion, message: str, tmp_path: Path
) -> None:
    split = write_set(tmp_path, [mask], dtype=np.uint8 if mask.ndim == 3 else np.uint16)
    with pytest.raises(ValueError, match=message):
        conversion(split.mask_dir / '0.png')


@pytest.mark.parametrize('word', ['1', 'a=1', '1=b', '1=-2', '=1'])
def test_a_bad_mapping_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match='wanted OLD=NEW'):
        read_mapping([word])


def test_a_class_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / 'classes.txt').write_text('sky\nroad\n', encoding='utf-8-sig')
    assert read_classes(tmp_path / 'classes.txt')[0] == ['sky', 'road']


def test_segnets_camvid_is_asked_about_and_then_read_rightly(shared_dir: Path, tmp_path: Path) -> None:
    root = shared_dir / 'data' / 'camvid'
    names = json.loads((root / 'classes.json').read_text())['classes']
    masks = [np.asarray(Image.open(p)).astype(int) for p in sorted((root / 'annotations/val').glob('*.png'))[:8]]
    _, found, _ = judge(tmp_path, [np.where(m == 0, 11, m - 1) for m in masks], len(names))
    assert any('error void convention unclear' in line for line in found)
