"""One photograph, stored in eight orientations and four formats: the same targets in training, the same detections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from addp_backbone.predict.predictor import Predictor

WIDTH, HEIGHT = 64, 48
# Transpose that undoes what a viewer does, by the EXIF standard's table.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
FORMATS: dict[str, dict[str, Any]] = {
    'jpg': dict(quality=100, subsampling=0),
    'png': {},
    'webp': dict(lossless=True),
    'tif': {},
}
SQUARES = [[8, 8, 16, 16], [40, 24, 16, 16]]


def photograph() -> Image.Image:
    """Noise in squares of 8 px, which a JPEG of quality 100 keeps alike however the squares are turned."""
    blocks = np.random.default_rng(0).integers(40, 200, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1))


@pytest.fixture(scope='module')
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Eight files of each format."""
    folder = tmp_path_factory.mktemp('turned')
    paths: dict[str, list[Path]] = {ending: [] for ending in FORMATS}
    for ending, options in FORMATS.items():
        for orientation, back in STORED.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            shown = photograph()
            path = folder / f'{orientation}.{ending}'
            (shown if back is None else shown.transpose(back)).save(path, exif=exif, **options)
            paths[ending].append(path)
    return paths


def assert_alike(results: dict[str, list[Any]]) -> None:
    """Files of lossless formats agree to the bit, and so do the JPEGs among themselves; both within a few grey levels.

    JPEG's colours are rounded once, whatever the orientation.
    """
    lossless = [result for ending in ('png', 'webp', 'tif') for result in results[ending]]
    for group in (lossless, results['jpg']):
        for result in group[1:]:
            assert result.keys() == group[0].keys()
            for name, value in result.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(group[0][name])), name


def test_turned_photographs_are_trained_on_alike(photographs: dict[str, list[Path]], tiny_det_config: Path) -> None:
    cfg = Config.fromfile(tiny_det_config)
    init_default_scope('mmdet')
    from mmdet.registry import DATASETS

    pipeline = [dict(step, flip_prob=0.0) if 'crop_size' in step else step for step in cfg.train_pipeline]
    results: dict[str, list[Any]] = {}
    for ending, paths in photographs.items():
        images = [dict(id=i, file_name=path.name, width=WIDTH, height=HEIGHT) for i, path in enumerate(paths)]
        annotations = [
            dict(id=2 * i + k, image_id=i, category_id=k, bbox=box, area=256, iscrowd=0, segmentation=[corners(box)])
            for i in range(len(paths))
            for k, box in enumerate(SQUARES)
        ]
        categories = [dict(id=k, name=name) for k, name in enumerate(('disc', 'box', 'wedge'))]
        file = paths[0].with_name(f'{ending}.json')
        file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
        options = dict(cfg.train_dataloader.dataset, ann_file=str(file), data_root='', pipeline=pipeline)
        dataset = DATASETS.build(dict(options, data_prefix=dict(img=str(file.parent))))
        results[ending] = [targets(dataset[i]) for i in range(len(paths))]
    assert_alike(results)
    gap = results['jpg'][0]['image'].int() - results['png'][0]['image'].int()
    assert gap.abs().max() <= 3
    assert torch.equal(results['jpg'][0]['boxes'], results['png'][0]['boxes'])
    image, (box, _) = results['png'][0]['image'], results['png'][0]['boxes'].int().tolist()
    shown = np.asarray(photograph())[..., ::-1][8:24, 8:24].transpose(2, 0, 1)
    assert (image[:, box[1] : box[3], box[0] : box[2]].numpy() == shown).all()  # the boxes lie on what they frame


def corners(box: list[int]) -> list[int]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def targets(sample: dict[str, Any]) -> dict[str, Any]:
    """What a training sees of an image."""
    truth = sample['data_samples'].gt_instances
    return dict(
        image=sample['inputs'],
        boxes=truth.bboxes.tensor if hasattr(truth.bboxes, 'tensor') else truth.bboxes,
        labels=truth.labels,
        masks=truth.masks.to_ndarray(),
    )


def test_objects_in_turned_photographs_are_detected_alike_in_the_viewers_frame(
    photographs: dict[str, list[Path]], tiny_det_config: Path, tmp_path: Path
) -> None:
    cfg = Config.fromfile(tiny_det_config)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict(), 'meta': {}}, tmp_path / 'iter_1.pth')
    predictor = Predictor(tiny_det_config, tmp_path / 'iter_1.pth', score_thr=0.0, device='cpu')
    predictor.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=20)
    predictor.model.roi_head.test_cfg.update(score_thr=0.0, max_per_img=20)
    results: dict[str, list[Any]] = {ending: [] for ending in FORMATS}
    for ending, paths in photographs.items():
        for path in paths:
            found: Any = predictor(path)
            assert (found.width, found.height) == (WIDTH, HEIGHT) and len(found.boxes)
            results[ending].append(dict(boxes=found.boxes, scores=found.scores, labels=found.labels))
    assert_alike(results)
