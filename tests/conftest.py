"""Fixtures every test may use: the folder of reference data beside the repository, and two tiny generated data sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image, ImageDraw

# A script's folder is on its path: there the tools find command_line.py. At the end, as test.py must not hide Python's.
sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools'))

SHAPES = ('disc', 'box', 'wedge')
IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX = 48, 64
NUM_TRAIN, NUM_VAL = 6, 5
EMPTY_TRAIN_IMAGE = 3
COLOURS = {'disc': (220, 40, 40), 'box': (40, 200, 60), 'wedge': (50, 70, 230)}


@pytest.fixture(autouse=True)
def _no_scope_left_behind() -> Iterator[None]:
    """Forgets mmengine's default scope after each test: mmseg's, left by one test, would hide mmdet's registries."""
    yield
    DefaultScope._instance_dict.clear()


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
    ``annotations/instances_{train2017,val2017}.json`` with one to three polygons an image of the categories 1 'disc', 2
    'box', 3 'wedge' (``SHAPES``). Leaf configs need ``data_root=f'{root}/'`` and ``metainfo=dict(classes=SHAPES)``.
    """
    root = tmp_path_factory.mktemp('tiny_coco')
    (root / 'annotations').mkdir()
    for split, num_images, seed in (('train2017', NUM_TRAIN, 0), ('val2017', NUM_VAL, 1)):
        (root / split).mkdir()
        rng = np.random.default_rng(seed)
        images: list[dict] = []
        annotations: list[dict] = []
        for index in range(num_images):
            picture, outlines = _draw_shapes(
                rng, 0 if split == 'train2017' and index == EMPTY_TRAIN_IMAGE else 1 + index % 3
            )
            name = f'{index + 1:012d}.jpg'
            picture.save(root / split / name, quality=95)
            images.append(dict(id=index + 1, file_name=name, height=IMAGE_HEIGHT_PX, width=IMAGE_WIDTH_PX))
            annotations += [
                _coco_record(len(annotations) + i + 1, index + 1, *outline) for i, outline in enumerate(outlines)
            ]
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(SHAPES)]
        text = json.dumps(dict(images=images, annotations=annotations, categories=categories))
        (root / 'annotations' / f'instances_{split}.json').write_text(text, encoding='utf-8')
    return root


@pytest.fixture(scope='session')
def tiny_ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of an ADE20K-like data set of 64 x 48 px JPEGs with coloured shapes; treat it as read-only.

    ``images/{training,validation}/*.jpg`` (6 and 5) and ``annotations/{training,validation}/*.png`` of the same names:
    uint8, 0 = void (the two topmost rows), 1 = background, 2 'disc', 3 'box', 4 'wedge'. With ``reduce_zero_label``
    that makes four classes, ``('background', *SHAPES)``.
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


@pytest.fixture(scope='session')
def tiny_det_config(tiny_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A leaf of det_configs/addp_tiny_maskrcnn.py on ``tiny_coco``: 64 px images, few RoIs, no workers."""
    return _write_leaf(
        tmp_path_factory.mktemp('configs') / 'det.py',
        'det_configs/addp_tiny_maskrcnn.py',
        f"""
dataset = dict(data_root={str(tiny_coco) + '/'!r}, metainfo=dict(classes={SHAPES}))
model = dict(
    backbone=dict(img_size=64, drop_path_rate=0.1),
    roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=32), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(max_per_img=32)))
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
for step in train_pipeline + test_pipeline:
    step.update({{key: (64, 64) for key in ('scale', 'crop_size') if key in step}})
train_dataloader = dict(num_workers=0, persistent_workers=False,
                        dataset=dict(pipeline=train_pipeline, filter_cfg=dict(filter_empty_gt=False), **dataset))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=dataset['data_root'] + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
""",
    )


@pytest.fixture(scope='session')
def tiny_seg_config(tiny_ade: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A leaf of seg_configs/addp_tiny_upernet.py on ``tiny_ade``: 32 px crops, data read in the main process."""
    return _write_leaf(
        tmp_path_factory.mktemp('configs') / 'seg.py',
        'seg_configs/addp_tiny_upernet.py',
        f"""
dataset = dict(
    type='BaseSegDataset', img_suffix='.jpg', seg_map_suffix='.png', reduce_zero_label=True,
    data_root={str(tiny_ade)!r},
    metainfo=dict(classes={('background', *SHAPES)}, palette=[[i, i, i] for i in range(4)]))
model = dict(
    data_preprocessor=dict(size=(32, 32)), backbone=dict(img_size=32, drop_path_rate=0.1),
    decode_head=dict(num_classes=4), auxiliary_head=dict(num_classes=4))
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
for step in train_pipeline + test_pipeline:
    step.update({{key: value for key, value in dict(scale=(64, 48), crop_size=(32, 32)).items() if key in step}})
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                        dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
""",
    )


def _write_leaf(path: Path, base: str, text: str) -> Path:
    """Writes a config that inherits from one of the project's; short schedule, everything logged."""
    path.write_text(
        f"""_base_ = {str(Path(__file__).resolve().parents[1] / base)!r}
{text}
train_cfg = dict(max_iters=4, val_begin=1000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=2)]
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
log_processor = dict(window_size=1)
""",
        encoding='utf-8',
    )
    return path


def _draw_shapes(
    rng: np.random.Generator, num_shapes: int
) -> tuple[Image.Image, list[tuple[str, list[tuple[float, float]]]]]:
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
    return dict(
        id=record_id,
        image_id=image_id,
        category_id=SHAPES.index(shape) + 1,
        iscrowd=0,
        bbox=box,
        area=box[2] * box[3],
        segmentation=[[value for corner in polygon for value in corner]],
    )
