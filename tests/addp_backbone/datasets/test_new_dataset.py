"""tools/new_dataset.py and what it stands on: checks of own data sets, and the leaf configs written for them."""

from __future__ import annotations

import copy
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine import Config
from mmengine.registry import DefaultScope
from PIL import Image

from addp_backbone.datasets.coco import DetectionSplit, check_detection
from addp_backbone.datasets.findings import Findings, bounded_map
from addp_backbone.datasets.masks import SegmentationSplit, check_segmentation, read_classes

ROOT = Path(__file__).parents[3]
MAIN = runpy.run_path(str(ROOT / 'tools' / 'new_dataset.py'))['main']
DET_BASE = ['--base', str(ROOT / 'det_configs' / 'addp_tiny_maskrcnn.py')]
SEG_BASE = ['--base', str(ROOT / 'seg_configs' / 'addp_tiny_upernet.py')]
SHAPES = ['disc', 'box', 'wedge']
Coco = dict[str, Any]


# Detection


def det_args(root: Path, out: Path, *more: str) -> list[str]:
    return [
        'det',
        '--out',
        str(out),
        '--train-json',
        str(root / 'annotations/instances_train2017.json'),
        '--train-images',
        str(root / 'train2017'),
        '--val-json',
        str(root / 'annotations/instances_val2017.json'),
        '--val-images',
        str(root / 'val2017'),
        *more,
    ]


def load_train(root: Path) -> Coco:
    return json.loads((root / 'annotations/instances_train2017.json').read_text())


def check_changed(tiny_coco: Path, tmp_path: Path, change: Callable[[Coco], None]) -> Findings:
    """Checks the training split after a change of its JSON."""
    content = load_train(tiny_coco)
    change(content)
    file = tmp_path / 'changed.json'
    file.write_text(json.dumps(content))
    findings = Findings()
    check_detection([DetectionSplit('train', file, tiny_coco / 'train2017')], findings)
    return findings


def test_good_detection_data_has_only_the_warning_about_its_empty_image(tiny_coco: Path) -> None:
    findings = Findings()
    split = DetectionSplit('train', tiny_coco / 'annotations/instances_train2017.json', tiny_coco / 'train2017')
    data = check_detection([split], findings)
    assert data.classes == tuple(SHAPES) and data.has_masks and data.num_train_images == 6
    assert [(e.level, e.kind) for e in findings.entries] == [('warning', 'image without annotation')]
    assert sum(findings.histogram['train'].values()) == len(load_train(tiny_coco)['annotations'])


def set_key(key: str, value: Any, where: str = 'annotations', position: int = 1) -> Callable[[Coco], None]:
    return lambda content: content[where][position].__setitem__(key, value)


def twice(where: str) -> Callable[[Coco], None]:
    return lambda content: content[where].append(copy.deepcopy(content[where][0]))


BAD_RECORDS = {  # change, level, kind, what the finding must name
    'category': (set_key('category_id', 9), 'error', 'category id outside the classes', 'annotation 2'),
    'image id': (set_key('image_id', 77), 'error', 'image id unknown', 'annotation 2'),
    'annotation twice': (twice('annotations'), 'error', 'annotation id twice', 'annotation 1'),
    'image twice': (twice('images'), 'error', 'image id twice', 'image 1'),
    'category twice': (twice('categories'), 'error', 'category twice', 'category 1'),
    'empty box': (set_key('bbox', [5, 5, 0, 7]), 'error', 'box empty or inverted', 'annotation 2'),
    'inverted box': (set_key('bbox', [5, 5, 4, -7]), 'error', 'box empty or inverted', 'annotation 2'),
    'box of three': (set_key('bbox', [5, 5, 4]), 'error', 'box malformed', 'annotation 2'),
    'box of NaN': (set_key('bbox', [5, 5, float('nan'), 4]), 'error', 'box malformed', 'annotation 2'),
    'box elsewhere': (set_key('bbox', [64, 5, 9, 9]), 'error', 'box outside the image', 'annotation 2'),
    'box x1y1x2y2': (
        set_key('bbox', [30, 30, 50, 40]),
        'warning',
        'box partly outside the image',
        'is it [x1, y1, x2, y2]?',
    ),
    'tiny box': (set_key('bbox', [5, 5, 0.5, 9]), 'warning', 'box too small', 'annotation 2'),
    'no mask': (set_key('segmentation', []), 'error', 'box without mask', 'annotation 2'),
    'polygon of two': (set_key('segmentation', [[1, 1, 2, 2]]), 'error', 'mask malformed', 'annotation 2'),
    'RLE of another size': (
        set_key('segmentation', {'size': [9, 9], 'counts': 'a'}),
        'error',
        'mask malformed',
        '[48, 64]',
    ),
    'no area': (
        lambda content: content['annotations'][1].pop('area'),
        'warning',
        'mended: area missing',
        'annotation 2',
    ),
    'no width': (lambda content: content['images'][1].pop('width'), 'error', 'key missing', 'images[1]'),
    'no file': (set_key('file_name', 'gone.jpg', 'images'), 'error', 'image missing', 'gone.jpg: image 2'),
    'wrong size': (set_key('width', 65, 'images'), 'error', 'image size differs', 'file 64 x 48, JSON 65 x 48'),
    'no images': (lambda content: content.pop('images'), 'error', 'annotation file cannot be used', "'images'"),
    'unused class': (
        lambda content: content['categories'].append({'id': 4, 'name': 'cone'}),
        'warning',
        'class without boxes',
        'cone',
    ),
}


@pytest.mark.parametrize('name', BAD_RECORDS)
def test_a_bad_record_is_found_with_its_file_and_id(name: str, tiny_coco: Path, tmp_path: Path) -> None:
    change, level, kind, named = BAD_RECORDS[name]
    findings = check_changed(tiny_coco, tmp_path, change)
    found = [entry for entry in findings.entries if entry.kind == kind]
    assert len(found) == 1 and found[0].level == level, findings.entries
    assert named in str(found[0])
    assert 'changed.json' in str(found[0])


def test_unreadable_images_are_found(tiny_coco: Path, tmp_path: Path) -> None:
    names = sorted(p.name for p in (tiny_coco / 'train2017').iterdir())
    for name in names:
        (tmp_path / name).write_bytes((tiny_coco / 'train2017' / name).read_bytes())
    (tmp_path / names[0]).write_bytes((tmp_path / names[0]).read_bytes()[:300])  # truncated
    (tmp_path / names[1]).write_text('<html>404</html>')
    with Image.open(tmp_path / names[2]) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # shown turned by 90 degrees
        image.save(tmp_path / names[2], exif=exif)
    findings = Findings()
    check_detection(
        [DetectionSplit('train', tiny_coco / 'annotations/instances_train2017.json', tmp_path)], findings, num_workers=2
    )
    errors = {Path(e.file).name: e.detail for e in findings.entries if e.level == 'error'}
    assert sorted(errors) == names[:3]
    assert (
        'truncated' in errors[names[0]].lower() and errors[names[1]] == 'is not an image' and 'EXIF' in errors[names[2]]
    )


def test_train_and_val_must_agree_and_not_overlap(tiny_coco: Path, tmp_path: Path) -> None:
    content = load_train(tiny_coco)
    content['categories'][0]['name'] = 'cone'
    (tmp_path / 'val.json').write_text(json.dumps(content))
    findings = Findings()
    check_detection(
        [
            DetectionSplit('train', tiny_coco / 'annotations/instances_train2017.json', tiny_coco / 'train2017'),
            DetectionSplit('val', tmp_path / 'val.json', tiny_coco / 'train2017'),
        ],
        findings,
    )
    kinds = [entry.kind for entry in findings.entries]
    assert kinds.count('categories differ') == 1 and kinds.count('image in train and val') == 6


def test_the_detection_leaf_loads_elsewhere_and_its_data_come_out_of_the_pipeline(
    tiny_coco: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'deep' / 'shapes.py'
    assert MAIN(det_args(tiny_coco, out, *DET_BASE)) == 0
    config = Config.fromfile(out)
    assert config.model.roi_head.bbox_head.num_classes == config.model.roi_head.mask_head.num_classes == 3
    assert config.val_evaluator.ann_file == config.test_evaluator.ann_file
    with DefaultScope.overwrite_default_scope('mmdet'):
        from mmdet.registry import DATASETS

        dataset = DATASETS.build(config.train_dataloader.dataset)
        assert dataset.metainfo['classes'] == SHAPES and len(dataset.metainfo['palette']) == 3
        item = dataset[0]
        assert len(item['data_samples'].gt_instances.masks) == len(item['data_samples'].gt_instances.labels) > 0
        assert len(DATASETS.build(config.val_dataloader.dataset)) == 5


@pytest.mark.parametrize('base', ['addp_base_cascade.py', 'addp_large_maskrcnn.py'])
def test_every_box_and_mask_head_gets_the_number_of_classes(base: str, tiny_coco: Path, tmp_path: Path) -> None:
    assert MAIN(det_args(tiny_coco, tmp_path / 'leaf.py', '--base', str(ROOT / 'det_configs' / base))) == 0
    head = Config.fromfile(tmp_path / 'leaf.py').model.roi_head
    heads = [*(head.bbox_head if isinstance(head.bbox_head, list) else [head.bbox_head]), head.mask_head]
    assert [one.num_classes for one in heads] == [3] * len(heads)
    assert all(one.loss_cls for one in heads[:-1])  # nothing of the base is lost


@pytest.mark.parametrize('base', ['addp_base_maskrcnn.py', 'addp_tiny_maskrcnn.py', 'addp_base_cascade.py'])
def test_boxes_without_masks_choose_faster_rcnn_and_say_so(
    base: str, tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / 'boxes'
    (root / 'annotations').mkdir(parents=True)
    for split in ('train2017', 'val2017'):
        content = json.loads((tiny_coco / f'annotations/instances_{split}.json').read_text())
        for annotation in content['annotations']:
            del annotation['segmentation']
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))
        (root / split).symlink_to(tiny_coco / split)
    assert MAIN(det_args(root, tmp_path / 'leaf.py', '--base', str(ROOT / 'det_configs' / base))) == 0
    assert 'Faster R-CNN' in capsys.readouterr().out
    config = Config.fromfile(tmp_path / 'leaf.py')
    assert config.model.roi_head.get('mask_head') is None and config.model.type != 'MaskRCNN'
    assert config.val_evaluator.metric == config.test_evaluator.metric == 'bbox'
    with DefaultScope.overwrite_default_scope('mmdet'):
        from mmdet.registry import DATASETS

        sample = DATASETS.build(config.train_dataloader.dataset)[0]['data_samples']
        assert len(sample.gt_instances.bboxes) > 0 and 'masks' not in sample.gt_instances


def test_errors_write_nothing_and_existing_configs_are_kept(
    tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = det_args(tiny_coco, tmp_path / 'leaf.py', *DET_BASE)
    args[args.index('--val-images') + 1] = str(tmp_path)
    assert MAIN(args) == 1
    output = capsys.readouterr()
    assert 'ERROR image missing (5)' in output.out and 'is not written' in output.err
    assert not list(tmp_path.glob('*.py'))
    (tmp_path / 'leaf.py').write_text('mine')
    with pytest.raises(SystemExit, match='2'):
        MAIN(det_args(tiny_coco, tmp_path / 'leaf.py', *DET_BASE))
    assert (tmp_path / 'leaf.py').read_text() == 'mine'


def test_a_base_of_the_other_task_is_refused_in_one_line(
    tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        MAIN(det_args(tiny_coco, tmp_path / 'leaf.py', '--base', str(ROOT / 'seg_configs/addp_base_upernet.py'))) == 1
    )
    assert 'has no model.roi_head' in capsys.readouterr().err.splitlines()[-1]
    assert MAIN(det_args(tiny_coco, tmp_path / 'leaf.py', '--base', 'nowhere.py')) == 1
    assert 'cannot be loaded' in capsys.readouterr().err.splitlines()[-1]


# Segmentation


def seg_args(root: Path, out: Path, classes: list[str], *more: str) -> list[str]:
    file = out.parent / 'classes.txt'
    file.write_text('\n'.join(classes) + '\n')
    return [
        'seg',
        '--out',
        str(out),
        '--classes',
        str(file),
        '--train-images',
        str(root / 'images/training'),
        '--train-masks',
        str(root / 'annotations/training'),
        '--val-images',
        str(root / 'images/validation'),
        '--val-masks',
        str(root / 'annotations/validation'),
        *more,
    ]


def mask_folder(tmp_path: Path, tiny_ade: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A copy of the training masks with other values."""
    folder = tmp_path / 'masks'
    folder.mkdir()
    for path in (tiny_ade / 'annotations/training').iterdir():
        Image.fromarray(change(np.array(Image.open(path)))).save(folder / path.name)
    return folder


def check_masks(tiny_ade: Path, masks: Path, num_classes: int = 4, void: str = 'auto') -> tuple[str, Findings]:
    findings = Findings()
    split = SegmentationSplit('train', tiny_ade / 'images/training', masks)
    data = check_segmentation([split], [f'class{i}' for i in range(num_classes)], findings, void)
    return data.void, findings


def test_the_segmentation_leaf_loads_elsewhere_and_its_data_come_out_of_the_pipeline(
    tiny_ade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert MAIN(seg_args(tiny_ade, tmp_path / 'leaf.py', ['background', *SHAPES], *SEG_BASE)) == 0
    assert 'void: 0 in the masks' in capsys.readouterr().out
    config = Config.fromfile(tmp_path / 'leaf.py')
    assert config.model.decode_head.num_classes == config.model.auxiliary_head.num_classes == 4
    with DefaultScope.overwrite_default_scope('mmseg'):
        from mmseg.registry import DATASETS

        dataset = DATASETS.build(config.val_dataloader.dataset)
        assert len(dataset) == 5 and dataset.metainfo['classes'] == ['background', *SHAPES]
        values = np.unique(dataset[0]['data_samples'].gt_sem_seg.data)
        assert values[0] == 0 and values[-1] == 255 and values[-2] <= 3
        assert len(DATASETS.build(config.train_dataloader.dataset)[0]['inputs']) == 3


def test_void_255_with_classes_from_zero_is_recognised_and_written(tiny_ade: Path, tmp_path: Path) -> None:
    masks = mask_folder(tmp_path, tiny_ade, lambda mask: mask - np.uint8(1))  # 0 wraps to 255
    void, findings = check_masks(tiny_ade, masks)
    assert void == '255' and not findings.entries
    args = seg_args(tiny_ade, tmp_path / 'leaf.py', ['background', *SHAPES], *SEG_BASE)[:9]
    args[args.index('--train-masks') + 1] = str(masks)
    assert MAIN([*args, *SEG_BASE]) == 0  # no validation data: trains and validates on the same
    config = Config.fromfile(tmp_path / 'leaf.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        from mmseg.registry import DATASETS

        labels = DATASETS.build(config.val_dataloader.dataset)[0]['data_samples'].gt_sem_seg.data
        original = np.array(Image.open(sorted((tiny_ade / 'annotations/training').iterdir())[0]))
        assert np.array_equal(labels[0].numpy(), original - np.uint8(1))


@pytest.mark.parametrize(
    ('change', 'num_classes', 'level', 'kind', 'named'),
    [
        (
            lambda m: np.where(m == 2, 9, m).astype(np.uint8),
            4,
            'error',
            'ids outside the classes',
            'wanted 1 to 4, void 0',
        ),
        (lambda m: np.clip(m, 1, 3), 4, 'error', 'void convention unclear', '--void zero'),
        (lambda m: np.clip(m, 0, 2), 4, 'warning', 'void convention guessed', 'the largest value is 2'),
        (lambda m: np.stack([m] * 3, -1), 4, 'error', 'mask unusable', 'mode RGB'),
        (lambda m: m[:-1], 4, 'error', 'mask size differs', 'mask 64 x 47, image 64 x 48'),
        (lambda m: np.where(m == 4, 1, m).astype(np.uint16) * 200, 4, 'error', 'ids outside the classes', '200 ('),
    ],
)
def test_a_bad_mask_is_found(
    change: Callable[[np.ndarray], np.ndarray],
    num_classes: int,
    level: str,
    kind: str,
    named: str,
    tiny_ade: Path,
    tmp_path: Path,
) -> None:
    _, findings = check_masks(tiny_ade, mask_folder(tmp_path, tiny_ade, change), num_classes)
    found = [entry for entry in findings.entries if entry.kind == kind]
    assert found and found[0].level == level, findings.entries
    assert named in str(found[0]) and str(tmp_path) in str(found[0])


def test_a_void_option_overrules_and_masks_that_leave_nothing_are_an_error(tiny_ade: Path, tmp_path: Path) -> None:
    masks = mask_folder(tmp_path, tiny_ade, lambda mask: mask * np.uint8(0))
    void, findings = check_masks(tiny_ade, masks, void='zero')
    errors = [entry for entry in findings.entries if entry.level == 'error']
    assert void == 'zero' and [entry.kind for entry in errors] == ['no labelled pixel']  # nothing could be learned
    assert 'all 6 masks are void everywhere' in errors[0].detail
    assert [entry.kind for entry in findings.entries].count('mask all void') == 6
    assert [entry.kind for entry in findings.entries].count('class without pixels') == 4


def test_missing_and_stray_masks_and_mixed_endings_are_found(tiny_ade: Path, tmp_path: Path) -> None:
    masks = mask_folder(tmp_path, tiny_ade, lambda mask: mask)
    (masks / '0001.png').rename(masks / 'other.png')
    _, findings = check_masks(tiny_ade, masks)
    assert {(e.kind, Path(e.file).name) for e in findings.entries} == {
        ('mask missing', '0001.png'),
        ('mask without image', 'other.png'),
    }
    images = tmp_path / 'images'
    images.mkdir()
    for name in ('a.jpg', 'b.PNG'):
        Image.new('RGB', (8, 8)).save(images / name)
    findings = Findings()
    check_segmentation([SegmentationSplit('train', images, tmp_path / 'nowhere')], ['a', 'b'], findings)
    assert {'images with several endings', 'folder missing'} <= {entry.kind for entry in findings.entries}


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('sky\n\nroad\n', ['sky', 'road']),
        ('["sky", "road"]', ['sky', 'road']),
        ('{"classes": ["sky", "road"], "palette": [[1, 2, 3], [4, 5, 6]]}', ['sky', 'road']),
    ],
)
def test_class_lists_come_as_text_or_json(text: str, expected: list[str], tmp_path: Path) -> None:
    file = tmp_path / ('classes.json' if text[0] in '[{' else 'classes.txt')
    file.write_text(text)
    names, palette = read_classes(file)
    assert names == expected
    assert palette == ([[1, 2, 3], [4, 5, 6]] if 'palette' in text else None)


@pytest.mark.parametrize(
    ('text', 'message'), [('sky\nsky', 'occur twice'), ('sky', '1 classes'), ('', 'one class name a line')]
)
def test_a_bad_class_list_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / 'classes.txt').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / 'classes.txt')


def test_only_a_few_images_are_in_memory_at_a_time() -> None:
    taken: list[int] = []

    def source() -> Any:
        for i in range(100):
            taken.append(i)
            yield i

    results = bounded_map(lambda i: i * i, source(), num_workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(taken) <= 3 + 4 * 2


def test_the_camvid_photographs_are_clean(shared_dir: Path, tmp_path: Path) -> None:
    root = shared_dir / 'data' / 'camvid'
    findings = Findings()
    classes, _ = read_classes(root / 'classes.json')
    split = SegmentationSplit('val', root / 'images/val', root / 'annotations/val')
    assert check_segmentation([split], classes, findings, num_workers=2).void == 'zero'
    assert not findings.entries


def test_hostile_names_and_folders_stay_strings_in_the_leaf(
    tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('SECRET', 'leaked')
    root = tmp_path / '{{$SECRET:x}} "\'\\'
    root.mkdir()
    for part in ('train2017', 'val2017'):
        (root / part).symlink_to(tiny_coco / part)
    names = ['{{$SECRET:x}}', "'),__import__('os').mkdir('ran')#", '{{ fileDirname }}\n"""']
    (root / 'annotations').mkdir()
    for split in ('train2017', 'val2017'):
        content = json.loads((tiny_coco / f'annotations/instances_{split}.json').read_text())
        for category, name in zip(content['categories'], names, strict=True):
            category['name'] = name
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))
    assert MAIN(det_args(root, root / 'leaf.py', *DET_BASE)) == 0
    config = Config.fromfile(root / 'leaf.py')
    assert config.metainfo.classes == names
    assert 'leaked' not in str(config.to_dict()) and not Path('ran').exists()
    with DefaultScope.overwrite_default_scope('mmdet'):
        from mmdet.registry import DATASETS

        assert DATASETS.build(config.train_dataloader.dataset).metainfo['classes'] == names
