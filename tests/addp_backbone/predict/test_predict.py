"""tools/predict.py and what it stands on: finding images, predictions as JSON and pictures, classes, errors."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from pycocotools import mask as coco_masks

from addp_backbone.datasets.palette import class_palette
from addp_backbone.files.images import read_image
from addp_backbone.predict.coco_ids import CocoIds
from addp_backbone.predict.overlays import draw_class_map, draw_instances
from addp_backbone.predict.predictions import ClassInfo, prediction_from_sample
from addp_backbone.predict.predictor import Predictor, find_classes
from addp_backbone.predict.run import predict_images
from addp_backbone.predict.sources import find_images

ROOT = Path(__file__).parents[3]
MAIN = runpy.run_path(str(ROOT / 'tools' / 'predict.py'))['main']
CLASSES = ClassInfo(('disc', 'box', 'wedge'), tuple(class_palette(3)))
PALETTE = [[200, 10, 10], [10, 200, 10], [10, 10, 200]]


def save_model(folder: Path, base: str, heads: dict[str, Any], meta: dict[str, Any]) -> tuple[Path, Path]:
    """A leaf config of a tiny model of three classes, and a checkpoint with random weights, as training writes them."""
    leaf = folder / 'leaf.py'
    leaf.write_text(f'_base_ = {str(ROOT / base)!r}\nmodel = {heads!r}\n')
    config = Config.fromfile(leaf)
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'iter_1.pth')
    return leaf, folder / 'iter_1.pth'


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    heads = {'roi_head': {'bbox_head': {'num_classes': 3}, 'mask_head': {'num_classes': 3}}}
    meta = {'dataset_meta': {'classes': ('disc', 'box', 'wedge'), 'palette': PALETTE}}
    return save_model(tmp_path_factory.mktemp('det'), 'det_configs/addp_tiny_maskrcnn.py', heads, meta)


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    heads = {'decode_head': {'num_classes': 3}, 'auxiliary_head': {'num_classes': 3}}
    meta = {'dataset_meta': {'classes': ['disc', 'box', 'wedge'], 'reduce_zero_label': True}}
    return save_model(tmp_path_factory.mktemp('seg'), 'seg_configs/addp_tiny_upernet.py', heads, meta)


def test_detection_writes_overlays_and_json_and_reports_what_it_cannot_read(
    detector: tuple[Path, Path], tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted((tiny_coco / 'val2017').iterdir())[:2]
    bad = tmp_path / 'bad.jpg'
    bad.write_bytes(good[0].read_bytes()[:200])
    code = MAIN(
        [
            *map(str, detector),
            *map(str, good),
            str(bad),
            '--out',
            str(tmp_path / 'out'),
            '--score-thr',
            '0.2',
            '--device',
            'cpu',
        ]
    )
    assert code == 1
    assert 'bad.jpg: cannot be read' in capsys.readouterr().err
    summary = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert summary['classes'] == ['disc', 'box', 'wedge']
    assert [Path(record['file_name']).name for record in summary['images']] == [good[0].name, good[1].name, 'bad.jpg']
    assert 'error' in summary['images'][2] and 'objects' not in summary['images'][2]
    objects = summary['images'][0]['objects']
    assert objects, 'random weights give scores of about a quarter for three classes and background'
    for one in objects:
        x, y, width, height = one['bbox']
        assert one['bbox_xyxy'] == pytest.approx([x, y, x + width, y + height], abs=0.011)
        assert 0 <= x <= x + width <= 64.01 and 0 <= y <= y + height <= 48.01
        assert one['score'] >= 0.2 and one['category'] == summary['classes'][one['label']]
        assert coco_masks.decode(one['segmentation']).shape == (48, 64)
    overlay = cv2.imread(str(tmp_path / 'out' / 'overlays' / f'{good[0].stem}.png'))
    assert overlay.shape == (480, 640, 3)
    assert sorted(p.name for p in (tmp_path / 'out' / 'overlays').iterdir()) == [f'{path.stem}.png' for path in good]


def test_detection_equals_mmdet(detector: tuple[Path, Path], tiny_coco: Path) -> None:
    from mmdet.apis import inference_detector

    image = str(sorted((tiny_coco / 'val2017').iterdir())[0])
    predictor = Predictor(*detector, score_thr=0.2, device='cpu')
    model = predictor.model
    model.cfg = Config.fromfile(detector[0])
    expected = inference_detector(model, image).pred_instances
    expected = expected[expected.scores >= 0.2]
    found = predictor(image)
    assert len(found.scores) == len(expected) > 0
    order = expected.scores.argsort(descending=True, stable=True)
    np.testing.assert_allclose(found.boxes, expected.bboxes[order].numpy(), rtol=1e-5)
    assert found.labels.tolist() == expected.labels[order].tolist()
    codes = found.masks
    model.roi_head.test_cfg['encode_masks'] = False
    assert codes == predictor(image).masks and len({code['counts'] for code in codes}) > 1


def test_a_path_a_pillow_image_and_an_array_give_identical_detections(
    detector: tuple[Path, Path], tiny_coco: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / 'turned.jpg'
    with Image.open(sorted((tiny_coco / 'val2017').iterdir())[0]) as image:
        image.save(path, exif=exif, quality=95)
    predictor = Predictor(*detector, score_thr=0.2, device='cpu')
    expected = predictor(path)
    assert (expected.width, expected.height) == (48, 64) and len(expected.scores)
    with Image.open(path) as opened:
        for found in (predictor(opened), predictor(np.asarray(read_image(path)))):
            assert found.to_json() == expected.to_json()
            assert np.array_equal(found.boxes, expected.boxes) and np.array_equal(found.scores, expected.scores)
    with pytest.raises(TypeError, match=r'wanted \(H, W, 3\) of uint8'):
        predictor(np.zeros((4, 4), np.uint8))


def test_segmentation_in_two_lines_writes_label_maps_whose_shares_are_those_of_the_json(
    segmentor: tuple[Path, Path], tiny_ade: Path, tmp_path: Path
) -> None:
    records = predict_images(*segmentor, str(tiny_ade / 'images/validation/000[01].jpg'), out=tmp_path, device='cpu')
    assert [record['name'] for record in records] == ['0000', '0001']
    record = records[0]
    assert json.loads((tmp_path / 'predictions.json').read_text())['images'] == records
    label_map = cv2.imread(str(tmp_path / 'label_maps' / f'{record["name"]}.png'), cv2.IMREAD_UNCHANGED)
    assert label_map.shape == (48, 64) and label_map.max() < 3
    expected = {
        name: (label_map == i).mean() for i, name in enumerate(('disc', 'box', 'wedge')) if (label_map == i).any()
    }
    assert record['fractions'] == pytest.approx(expected, abs=1e-6)
    overlay = cv2.imread(str(tmp_path / 'overlays' / f'{record["name"]}.png'))
    assert overlay.shape[0] == 480 and overlay.shape[1] > 640  # the legend


def test_test_time_augmentation_predicts_too(segmentor: tuple[Path, Path], tiny_ade: Path, tmp_path: Path) -> None:
    leaf = tmp_path / 'augmented.py'
    leaf.write_text(
        f'_base_ = {str(segmentor[0])!r}\n'
        'model = dict(_delete_=True, **_base_.tta_model, module=_base_.model)\n'
        "turn = [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)]\n"
        "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), "
        "dict(type='TestTimeAug', transforms=["
        "[dict(type='Resize', scale=(64, 48), keep_ratio=True)], turn, [dict(type='LoadAnnotations')],"
        " [dict(type='PackSegInputs')]])]))\n"
    )
    image = sorted((tiny_ade / 'images/validation').iterdir())[0]
    prediction = Predictor(leaf, segmentor[1], device='cpu')(image)
    assert prediction.label_map.shape == (48, 64)


@pytest.mark.parametrize('problem', ['no config', 'no checkpoint', 'no image', 'malicious', 'other model'])
def test_bad_input_is_one_clear_line_and_no_output(
    problem: str,
    detector: tuple[Path, Path],
    segmentor: tuple[Path, Path],
    tiny_coco: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, checkpoint, images = str(detector[0]), str(detector[1]), str(tiny_coco / 'val2017')
    if problem == 'no config':
        config, message = str(tmp_path / 'nix.py'), 'does not exist'
    elif problem == 'no checkpoint':
        checkpoint, message = str(tmp_path / 'nix.pth'), 'does not exist'
    elif problem == 'no image':
        images, message = str(tmp_path / '*.jpg'), 'no such image'
    elif problem == 'malicious':
        torch.save({'state_dict': {}, 'meta': Touch(tmp_path / 'executed')}, tmp_path / 'bad.pth')
        checkpoint, message = str(tmp_path / 'bad.pth'), 'refused'
    else:
        checkpoint, message = str(segmentor[1]), 'does not fit the model'
    assert MAIN([config, checkpoint, images, '--out', str(tmp_path / 'out'), '--device', 'cpu']) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and error[-1].startswith('error: ')
    assert not (tmp_path / 'out').exists() and not (tmp_path / 'executed').exists()


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_counts_once_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'photos').mkdir()
    for name in ('a.png', 'b.png'):
        (tmp_path / 'photos' / name).write_bytes(b'')
    monkeypatch.chdir(tmp_path)
    found = find_images(['photos', 'photos/../photos/*.png', tmp_path / 'photos/b.png', './photos/a.png'])
    assert found == {Path('photos/a.png'): 'a', Path('photos/b.png'): 'b'}


def test_images_that_are_links_to_one_file_have_ids_of_their_own(tmp_path: Path) -> None:
    (tmp_path / 'blob').write_bytes(b'')
    (tmp_path / 'photos').mkdir()
    images = {tmp_path / 'photos' / name: number for name, number in (('a.png', 5), ('b.png', 3))}
    for path in images:
        path.symlink_to('../blob')
    (tmp_path / 'elsewhere').symlink_to('photos')
    ids = CocoIds([1], images)
    assert [ids.image_id(str(path)) for path in images] == [5, 3]
    assert ids.image_id(str(tmp_path / 'elsewhere/a.png')) == 5, 'found by where the link leads'
    assert [ids.image_id(name) for name in ('other.png', 'http://a/b.png', 'other.png')] == [6, 7, 6]


def test_files_folders_and_patterns_are_found_once_under_unique_names(tmp_path: Path) -> None:
    for name in ('a/x.jpg', 'a/deep/y.PNG', 'b/x.jpg', 'b/x.png', 'b/notes.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path / 'a', f'{tmp_path}/b/*.jpg', tmp_path / 'b' / 'x.png', tmp_path / 'a' / 'x.jpg'])
    assert {path.relative_to(tmp_path).as_posix(): name for path, name in found.items()} == {
        'a/deep/y.PNG': 'deep/y',
        'a/x.jpg': 'x',
        'b/x.jpg': 'x_2',
        'b/x.png': 'x_3',
    }


def test_classes_come_from_the_checkpoint_then_the_config_then_the_data_set() -> None:
    config = Config(
        dict(test_dataloader=dict(dataset=dict(type='mmdet.CocoDataset', metainfo=dict(classes=['a', 'b']))))
    )
    assert find_classes(
        {'dataset_meta': {'classes': ['c', 'd'], 'palette': [[1, 2, 3], [4, 5, 6]]}}, config, 2
    ).names == ('c', 'd')
    assert find_classes({'dataset_meta': {'classes': ['c', 'd', 'e']}}, config, 2).names == (
        'a',
        'b',
    )  # another number: passed over
    assert find_classes({}, config, 80).names[:2] == ('person', 'bicycle')
    assert find_classes({}, config, 3) == ClassInfo(('class 0', 'class 1', 'class 2'), tuple(class_palette(3)))


def test_an_unknown_kind_of_result_is_refused() -> None:
    with pytest.raises(ValueError, match='wanted one of'):
        prediction_from_sample(DetDataSample(), CLASSES, 0.3)


def test_detections_are_sorted_and_cut_at_the_threshold() -> None:
    masks = torch.zeros(3, 8, 9, dtype=torch.bool)
    masks[2, 1:3, 1:4] = True
    sample = DetDataSample(
        metainfo=dict(ori_shape=(8, 9)),
        pred_instances=InstanceData(
            bboxes=torch.tensor([[0.0, 0, 5, 5], [1, 1, 2, 2], [1, 1, 4, 3]]),
            scores=torch.tensor([0.4, 0.2, 0.9]),
            labels=torch.tensor([0, 1, 2]),
            masks=masks,
        ),
    )
    record = prediction_from_sample(sample, CLASSES, 0.3).to_json()
    assert [(one['category'], one['score'], one['bbox']) for one in record['objects']] == [
        ('wedge', 0.9, [1, 1, 3, 2]),
        ('disc', 0.4, [0, 0, 5, 5]),
    ]
    assert np.array_equal(coco_masks.decode(record['objects'][0]['segmentation']), masks[2].numpy())


def test_no_detection_leaves_the_image_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 255, (700, 650, 3)).astype(np.uint8)
    sample = DetDataSample(
        metainfo=dict(ori_shape=(700, 650)),
        pred_instances=InstanceData(
            bboxes=torch.zeros(0, 4),
            scores=torch.zeros(0),
            labels=torch.zeros(0, dtype=torch.long),
            masks=torch.zeros(0, 700, 650),
        ),
    )
    prediction = prediction_from_sample(sample, CLASSES, 0.3)
    assert prediction.to_json()['objects'] == []
    assert np.array_equal(prediction.draw(image), image)


def test_the_overlay_colours_the_mask_and_draws_the_box() -> None:
    image = np.full((700, 700, 3), 100, np.uint8)
    mask = np.zeros((700, 700), bool)
    mask[300:400, 300:400] = True
    drawn = draw_instances(
        image, np.array([[200.0, 200, 500, 500]]), np.array([0.9]), np.array([1]), [mask], CLASSES.names, PALETTE
    )
    assert drawn[350, 350].tolist() == [60, 145, 60]  # 100 + 0.45 * (colour - 100), halves rounded to even
    assert drawn[500, 350].tolist() == PALETTE[1]
    assert drawn[600, 600].tolist() == [100, 100, 100]


def test_an_empty_mask_leaves_the_box_alone() -> None:
    image = np.full((700, 700, 3), 100, np.uint8)
    masks = [np.zeros((700, 700), bool)]
    drawn = draw_instances(
        image, np.array([[200.0, 200, 500, 500]]), np.array([0.9]), np.array([1]), masks, CLASSES.names, PALETTE
    )
    assert drawn[350, 350].tolist() == [100, 100, 100] and drawn[500, 350].tolist() == PALETTE[1]


def test_the_class_map_is_coloured_and_its_legend_lists_what_occurs() -> None:
    label_map = np.zeros((700, 700), np.int64)
    label_map[:, 350:] = 2
    drawn = draw_class_map(np.full((700, 700, 3), 100, np.uint8), label_map, CLASSES.names, PALETTE)
    assert drawn[10, 10].tolist() == [160, 46, 46] and drawn[10, 690].tolist() == [46, 46, 160]
    legend = drawn[:, 700:].reshape(-1, 3).tolist()
    assert PALETTE[0] in legend and PALETTE[2] in legend and PALETTE[1] not in legend


def test_a_class_map_is_taken_from_a_sample() -> None:
    sample = SegDataSample(pred_sem_seg=PixelData(data=torch.tensor([[[0, 0, 2, 2]]])))
    record = prediction_from_sample(sample, CLASSES, 0.3).to_json()
    assert record == {'width': 4, 'height': 1, 'fractions': {'disc': 0.5, 'wedge': 0.5}}


def test_colours_differ_for_every_ade20k_class() -> None:
    colors = class_palette(150)
    assert len(set(colors)) == 150 and class_palette(3) == colors[:3]
