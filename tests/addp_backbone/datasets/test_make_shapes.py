"""tools/make_shapes.py, addp_backbone/datasets/shapes/scenes.py and shape_dataset.py: generated data sets."""

from __future__ import annotations

import colorsys
import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from addp_backbone.datasets.shapes.scenes import MIN_VISIBLE_FRACTION, SHAPE_CLASSES, render_scene, shape_outline
from addp_backbone.datasets.shapes.writer import SEG_CLASSES, ShapeSettings, write_shapes

MAIN = runpy.run_path(str(Path(__file__).parents[3] / 'tools' / 'make_shapes.py'))['main']
SETTINGS = ShapeSettings(height=48, width=64, train_scenes=3, val_scenes=2, train_per_class=1, plain_images=1)


@pytest.fixture(scope='module')
def shapes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('shapes')
    write_shapes(out, SETTINGS)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_there_are_at_least_eight_classes_and_every_outline_has_area_one() -> None:
    assert len(set(SHAPE_CLASSES)) >= 8
    for name in SHAPE_CLASSES:
        areas = [cv2.contourArea(contour) for contour in shape_outline(name)]
        assert areas[0] - sum(areas[1:]) == pytest.approx(1, abs=1e-4), name


def test_a_scene_is_a_function_of_its_generator() -> None:
    first, again, other = (render_scene(np.random.default_rng(seed), 40, 56) for seed in (1, 1, 2))
    assert first.image.shape == (40, 56, 3)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.image, other.image)


def test_shapes_overlap_yet_stay_visible_and_no_pixel_has_two() -> None:
    visible_share = []
    for seed in range(4):
        scene = render_scene(
            np.random.default_rng(seed), 96, 96, labels=[SHAPE_CLASSES.index('circle')] * 9, size=(0.3, 0.3)
        )
        assert scene.masks.sum(0).max() == 1
        assert len(scene.masks) == len(scene.labels) > 0
        assert (
            scene.masks.sum((1, 2)).min() > 0.95 * MIN_VISIBLE_FRACTION * 0.6 * (0.3 * 96) ** 2
        )  # 0.6 of it may be within the picture
        hulls = [cv2.convexHull(np.argwhere(mask).astype(np.int32)) for mask in scene.masks]
        visible_share += [m.sum() / cv2.contourArea(hull) for m, hull in zip(scene.masks, hulls, strict=True)]
    assert max(visible_share) > 0.95 and min(visible_share) < 0.9  # a circle with a piece hidden is no longer convex


@pytest.mark.parametrize('label', range(len(SHAPE_CLASSES)))
def test_a_typical_shape_has_its_classs_hue_on_a_dull_ground_and_others_do_not(label: int) -> None:
    def hue_and_saturation(pixels: np.ndarray) -> tuple[float, float]:
        color = pixels.mean(0) / 255
        hue, saturation, _ = colorsys.rgb_to_hsv(*color)
        return hue, saturation

    def distances(typical: float) -> list[float]:
        found = []
        for seed in range(8):
            scene = render_scene(
                np.random.default_rng(seed), 64, 64, [label], (0.5, 0.5), spread=0.0, typical=typical, clutter=0
            )
            hue, saturation = hue_and_saturation(scene.image[scene.masks[0]])
            difference = abs(hue - label % 5 / 5)
            found.append(min(difference, 1 - difference))
            if typical:
                assert hue_and_saturation(scene.image[~scene.masks[0]])[1] < saturation
        return found

    assert max(distances(1.0)) < 0.08
    assert max(distances(0.0)) > 0.15


def test_clutter_and_materials_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r'typical in \[0, 1\].*got 1.5'):
        ShapeSettings(typical=1.5)
    with pytest.raises(ValueError, match='min_size <= max_size'):
        ShapeSettings(min_size=0.5, max_size=0.2)
    with pytest.raises(ValueError, match="'clutter': -1"):
        ShapeSettings(clutter=-1)


def test_masks_of_instances_and_of_classes_agree(shapes_dir: Path) -> None:
    coco = COCO(str(shapes_dir / 'instances_train.json'))
    assert len(coco.imgs) == 3 and {c['name'] for c in coco.cats.values()} == set(SHAPE_CLASSES)
    for image in coco.imgs.values():
        expected = np.ones((image['height'], image['width']), np.uint8)
        for annotation in coco.imgToAnns[image['id']]:
            mask = coco.annToMask(annotation).astype(bool)
            assert mask.sum() == annotation['area']
            rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
            assert annotation['bbox'] == [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            expected[mask] = SEG_CLASSES.index(coco.cats[annotation['category_id']]['name']) + 1
        stored = cv2.imread(str(shapes_dir / 'annotations' / 'train' / image['file_name']), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(stored, expected)
        picture = cv2.imread(str(shapes_dir / 'images' / 'train' / image['file_name']), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (48, 64, 3)


def test_every_layout_is_written(shapes_dir: Path) -> None:
    assert sorted(p.name for p in (shapes_dir / 'classes' / 'train').iterdir()) == sorted(SHAPE_CLASSES)
    assert len(list((shapes_dir / 'classes' / 'train').rglob('*.png'))) == 10
    assert len(list((shapes_dir / 'plain').glob('*.png'))) == 1
    classes = json.loads((shapes_dir / 'classes.json').read_text())
    assert classes == {'classes': ['background', *SHAPE_CLASSES], 'things': list(SHAPE_CLASSES)}


def test_two_processes_and_a_cut_run_give_the_same_files_as_one(shapes_dir: Path, tmp_path: Path) -> None:
    for name in (
        'settings.json',
        'images/val/000000.png',
        'annotations/val/000000.png',
        '.records/scenes/val/000000.json',
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((shapes_dir / name).read_bytes())
    (tmp_path / 'images/val/000001.png').write_bytes(b'half a pict')  # without its record: not finished
    write_shapes(tmp_path, SETTINGS, num_workers=2)
    assert contents(tmp_path) == contents(shapes_dir)


def test_other_settings_in_the_same_folder_are_refused(shapes_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(shapes_dir)
    assert MAIN([str(shapes_dir), '--train', '4', '--val', '2', '--size', '64x48']) == 1
    assert 'train_scenes: 3 there, 4 now' in capsys.readouterr().err
    assert contents(shapes_dir) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'thesis.tex').write_text('years of work')
    assert MAIN([str(tmp_path), '--train', '1']) == 1
    assert 'was not written by this tool' in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


@pytest.mark.parametrize('size', ['abc', '3x', 'x3', '4x4x4', '-5'])
def test_a_size_that_is_none_is_refused_with_an_example(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match='2'):
        MAIN([str(tmp_path / 'out'), f'--size={size}'])
    assert '480x360' in capsys.readouterr().err
