"""Fixtures every test may use: the folder of reference data beside the repository, and two tiny generated data sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

SHAPES = ('disc', 'box', 'wedge')
IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX = 48, 64
NUM_TRAIN, NUM_VAL = 6, 5
EMPTY_TRAIN_IMAGE = 3
COLOURS = {'disc': (220, 40, 40), 'box': (40, 200, 60), 'wedge': (50, 70, 230)}


@pytest.fixture(scope='session')
def shared_dir() -> Path:
    """The folder ``shared`` beside the repository (golden values, photographs); skips the test where it is missing."""
    folder = Path(__file__).resolve().parents[2] / 'shared'
    if not folder.is_dir():
        pytest.skip(f'reference data folder {folder.name!r} does not lie beside the repository')
    return folder


@pytest.fixture(scope='session')
def tiny_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a COCO data set of 64 x 48 px JPEGs with coloured shapes; treat it as read-only.

    ``train2017/*.jpg`` (6, the one with id 4 has no object), ``val2017/*.jpg`` (5, an odd number), and
    ``annotations/instances_{train2017,val2017}.json`` with one to three polygons an image of the categories
    1 'disc', 2 'box', 3 'wedge' (``SHAPES``). Leaf configs need ``data_root=f'{root}/'`` and ``metainfo=dict(classes=SHAPES)``.
    """
    root = tmp_path_factory.mktemp('tiny_coco')
    (root / 'annotations').mkdir()
    for split, num_images, seed in (('train2017', NUM_TRAIN, 0), ('val2017', NUM_VAL, 1)):
        (root / split).mkdir()
        rng = np.random.default_rng(seed)
        images: list[dict] = []
        annotations: list[dict] = []
        for index in range(num_images):
            picture, outlines = _draw_shapes(rng, 0 if split == 'train2017' and index == EMPTY_TRAIN_IMAGE else 1 + index % 3)
            name = f'{index + 1:012d}.jpg'
            picture.save(root / split / name, quality=95)
            images.append(dict(id=index + 1, file_name=name, height=IMAGE_HEIGHT_PX, width=IMAGE_WIDTH_PX))
            annotations += [_coco_record(len(annotations) + i + 1, index + 1, *outline) for i, outline in enumerate(outlines)]
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(SHAPES)]
        text = json.dumps(dict(images=images, annotations=annotations, categories=categories))
        (root / 'annotations' / f'instances_{split}.json').write_text(text, encoding='utf-8')
    return root


@pytest.fixture(scope='session')
def tiny_ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of an ADE20K-like data set of 64 x 48 px JPEGs with coloured shapes; treat it as read-only.

    ``images/{training,validation}/*.jpg`` (6 and 5) and ``annotations/{training,validation}/*.png`` of the same names: uint8,
    0 = void (the two topmost rows), 1 = background, 2 'disc', 3 'box', 4 'wedge'. With ``reduce_zero_label`` that makes four
    classes, ``('background', *SHAPES)``.
    """
    root = tmp_path_factory.mktemp('tiny_ade')
    for split, num_images, seed in (('training', NUM_TRAIN, 2), ('validation', NUM_VAL, 3)):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        rng = np.random.default_rng(seed)
        for index in range(num_images):
            picture, outlines = _draw_shapes(rng, 1 + index % 3)
            labels = Image.new('L', picture.size, 1)
            for shape, polygon in outlines:
                ImageDraw.Draw(labels).polygon(polygon, fill=SHAPES.index(shape) + 2)
            ImageDraw.Draw(labels).rectangle((0, 0, IMAGE_WIDTH_PX, 1), fill=0)
            picture.save(root / 'images' / split / f'{index:04d}.jpg', quality=95)
            labels.save(root / 'annotations' / split / f'{index:04d}.png')
    return root


def _draw_shapes(rng: np.random.Generator, num_shapes: int) -> tuple[Image.Image, list[tuple[str, list[tuple[float, float]]]]]:
    """A grey noisy picture with ``num_shapes`` shapes side by side, and (shape name, polygon in px) of each."""
    noise = rng.integers(90, 130, (IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    outlines = []
    for column in range(num_shapes):
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        width_px = IMAGE_WIDTH_PX / num_shapes
        radius_px = float(rng.uniform(0.3, 0.42)) * min(width_px, IMAGE_HEIGHT_PX)
        centre = ((column + 0.5) * width_px, float(rng.uniform(radius_px, IMAGE_HEIGHT_PX - radius_px)))
        corners = {'disc': 16, 'box': 4, 'wedge': 3}[shape]
        angles = np.pi / 4 + 2 * np.pi * np.arange(corners) / corners
        polygon = [(centre[0] + radius_px * float(np.cos(a)), centre[1] + radius_px * float(np.sin(a))) for a in angles]
        ImageDraw.Draw(picture).polygon(polygon, fill=COLOURS[shape])
        outlines.append((shape, polygon))
    return picture, outlines


def _coco_record(record_id: int, image_id: int, shape: str, polygon: list[tuple[float, float]]) -> dict:
    """One entry of a COCO file's ``annotations``."""
    xs, ys = zip(*polygon, strict=True)
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return dict(id=record_id, image_id=image_id, category_id=SHAPES.index(shape) + 1, iscrowd=0, bbox=box, area=box[2] * box[3],
                segmentation=[[value for corner in polygon for value in corner]])
