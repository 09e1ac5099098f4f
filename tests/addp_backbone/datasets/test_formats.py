"""Annotations of other tools are read with the boxes, masks and classes that their tools show."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from mmengine import Config
from mmengine.registry import DefaultScope
from PIL import Image
from pycocotools import mask as mask_codec

from addp_backbone.datasets.coco_file import CocoFile
from addp_backbone.datasets.findings import Findings
from addp_backbone.datasets.formats.detect import detect_format, read_annotations, read_class_names, read_split_list

ROOT = Path(__file__).parents[3]
MAIN = runpy.run_path(str(ROOT / 'tools' / 'new_dataset.py'))['main']
WIDTH, HEIGHT = 96, 64
OBJECTS = [('red', (10, 8, 30, 20)), ('grün', (50.5, 20.25, 24, 30.5))]  # x, y, width, height


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / 'images'
    folder.mkdir()
    for name in ('a', 'b'):
        Image.new('RGB', (WIDTH, HEIGHT), (90, 90, 90)).save(folder / f'{name}.jpg')
    return folder


def read(source: Path, images: Path, **options: Any) -> tuple[CocoFile, list[str]]:
    findings = Findings()
    coco = read_annotations(source, images, findings, **options)
    assert coco is not None, findings.entries
    return coco, [f'{e.level} {e.kind}: {e.record} {e.detail}' for e in findings.entries]


def objects_of(coco: CocoFile, stem: str = 'a') -> list[tuple[str, list[float]]]:
    ids = {record['id'] for record in coco.images if Path(record['file_name']).stem == stem}
    return [(coco.categories[r['category_id']], r['bbox']) for r in coco.annotations if r['image_id'] in ids]


def assert_boxes(coco: CocoFile, tolerance: float = 1e-6) -> None:
    found = objects_of(coco)
    assert [name for name, _ in found] == [name for name, _ in OBJECTS]
    np.testing.assert_allclose([box for _, box in found], [box for _, box in OBJECTS], atol=tolerance)


def write_voc(folder: Path, stem: str, objects: list, name: str | None = None, extra: str = '') -> None:
    folder.mkdir(exist_ok=True)
    items = ''.join(
        f'<object><name>{label}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>'
        f'</bndbox>{extra}</object>'
        for label, (x, y, w, h) in objects
    )
    size = f'<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>'
    text = f'<annotation><filename>{name or stem + ".jpg"}</filename>{size}{items}</annotation>'
    (folder / f'{stem}.xml').write_text(text, encoding='utf-8')


def write_yolo(folder: Path, coco: CocoFile) -> None:
    folder.mkdir()
    names = sorted(coco.categories.values())
    (folder / 'data.yaml').write_text('names:\n' + ''.join(f'  {i}: {name}\n' for i, name in enumerate(names)))
    for image in coco.images:
        lines = []
        for r in (r for r in coco.annotations if r['image_id'] == image['id']):
            x, y, w, h = r['bbox']
            box = ((x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
            lines.append(
                ' '.join(map(str, (names.index(coco.categories[r['category_id']]), *(f'{v:.6f}' for v in box))))
            )
        (folder / f'{Path(image["file_name"]).stem}.txt').write_text('\n'.join(lines))


def test_coco_to_voc_to_yolo_to_coco_keeps_boxes_and_classes(images: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / 'voc', 'a', OBJECTS)
    from_voc, found = read(tmp_path / 'voc', images)
    assert found == [] and from_voc.mended
    assert_boxes(from_voc)
    write_yolo(tmp_path / 'yolo', from_voc)
    from_yolo, found = read(tmp_path / 'yolo', images)
    assert found == []
    assert_boxes(from_yolo, tolerance=1e-3)
    (tmp_path / 'coco.json').write_text(from_yolo.to_json(), encoding='utf-8')
    again, found = read(tmp_path / 'coco.json', images)
    assert found == [] and not again.mended
    assert_boxes(again, tolerance=1e-3)
    assert again.categories == from_yolo.categories


def test_voc_files_of_other_names_flags_and_conventions(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'voc'
    write_voc(folder, 'a', OBJECTS[:1], name='somewhere/else.png', extra='<difficult>1</difficult>')
    write_voc(folder, 'b', [('red', (5, 5, 0, 0)), OBJECTS[1]])
    coco, found = read(folder, images)
    assert [image['file_name'] for image in coco.images] == ['a.jpg', 'b.jpg']
    assert [record['iscrowd'] for record in coco.annotations] == [1, 1, 0]
    assert any('difficult' in line for line in found) and any('box empty' in line for line in found)
    (folder / 'a.xml').write_text(
        (folder / 'a.xml')
        .read_text()
        .replace('<annotation>', '<annotation><source><database>The VOC2007 x</database></source>')
    )
    challenge, _ = read(folder, images)
    assert objects_of(challenge)[0][1] == [9, 7, 31, 21], 'corners count from 1 and are inclusive there'


@pytest.mark.parametrize(
    'text',
    [
        '<annotation><object><name>x</name></object></annotation>',
        '<annotation><object><bndbox/></object></annotation>',
        '<!DOCTYPE a [<!ENTITY b "b">]><annotation/>',
        'no xml',
        '<annotation><object><name>x</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></object></annotation>',
    ],
)
def test_bad_xml_is_an_error_that_names_the_file(text: str, images: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / 'voc', 'b', OBJECTS)
    (tmp_path / 'voc' / 'a.xml').write_text(text)
    findings = Findings()
    read_annotations(tmp_path / 'voc', images, findings)
    assert [e for e in findings.entries if e.level == 'error' and e.file.endswith('a.xml')]


def test_yolo_polygons_make_boxes_and_masks(images: Path, tmp_path: Path) -> None:
    (tmp_path / 'labels').mkdir()
    (tmp_path / 'data.yaml').write_text('names: [red, blue]\nnc: 2\n')
    (tmp_path / 'labels' / 'a.txt').write_text('1 0.25 0.25 0.5 0.25 0.5 0.75\n\n')
    coco, _ = read(tmp_path / 'labels', images)
    assert objects_of(coco) == [('blue', [24, 16, 24, 32])]
    assert coco.annotations[0]['segmentation'] == [[24, 16, 48, 16, 48, 48]]
    assert len(coco.images) == 2, 'an image without a file has no objects'


@pytest.mark.parametrize(
    'line', ['2 .5 .5 .1 .1', '0 50 50 10 10', '0 .5 .5 .1', '0 a b c d', '0.5 .5 .5 .1 .1', '0 1 1 1 1 1']
)
def test_a_bad_line_of_yolo_is_named(line: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / 'labels').mkdir()
    (tmp_path / 'classes.txt').write_text('red\nblue\n')
    (tmp_path / 'labels' / 'a.txt').write_text(f'0 .5 .5 .1 .1\n{line}\n')
    _, found = read(tmp_path / 'labels', images)
    assert any('annotation malformed: line 2' in entry for entry in found), found


def test_yolo_without_class_names_is_asked_for_them(images: Path, tmp_path: Path) -> None:
    (tmp_path / 'labels').mkdir()
    (tmp_path / 'labels' / 'a.txt').write_text('0 .5 .5 .1 .1\n')
    with pytest.raises(ValueError, match='--classes FILE'):
        read(tmp_path / 'labels', images)
    coco, _ = read(tmp_path / 'labels', images, classes=['red'])
    assert coco.categories == {1: 'red'}


def test_labelmes_shapes_become_objects_and_groups_one_object(images: Path, tmp_path: Path) -> None:
    shapes = [
        dict(label='red', points=[[10, 8], [40, 28]], shape_type='rectangle', group_id=None),
        dict(label='blue', points=[[50, 10], [60, 10], [60, 20]], shape_type='polygon', group_id=1),
        dict(label='blue', points=[[70, 30], [80, 30], [80, 40]], shape_type='polygon', group_id=1),
        dict(label='red', points=[[20, 40], [25, 40]], shape_type='circle'),
        dict(label='red', points=[[1, 1]], shape_type='point'),
    ]
    (tmp_path / 'labels').mkdir()
    content = dict(imagePath='..\\images\\a.jpg', imageWidth=WIDTH, imageHeight=HEIGHT, shapes=shapes)
    (tmp_path / 'labels' / 'a.json').write_text(json.dumps(content))
    coco, found = read(tmp_path / 'labels', images)
    assert coco.images[0]['file_name'] == 'a.jpg'
    boxes = objects_of(coco)
    assert boxes[:2] == [('red', [10, 8, 30, 20]), ('blue', [50, 10, 30, 30])]
    np.testing.assert_allclose(boxes[2][1], [15, 35, 10, 10], atol=0.1)
    assert len(coco.annotations[1]['segmentation']) == 2
    assert [line for line in found if 'shape left out' in line and 'point' in line] and len(found) == 1


def label_studio_task(kind: str, value: dict[str, Any], image: str = '/data/upload/3/0a1b2c3d-a.jpg') -> dict[str, Any]:
    result = dict(type=kind, value=value, original_width=WIDTH, original_height=HEIGHT)
    cancelled = dict(was_cancelled=True, result=[dict(result, type='brushlabels')])
    return dict(data=dict(image=image), annotations=[cancelled, dict(result=[result])])


@pytest.mark.parametrize(
    'image', ['/data/upload/3/0a1b2c3d-a.jpg', '/data/local-files/?d=x%2Fa.jpg', 'https://h.de/a.jpg']
)
def test_label_studios_per_cent_become_pixels(image: str, images: Path, tmp_path: Path) -> None:
    value = dict(x=25, y=50, width=50, height=25, rotation=0, rectanglelabels=['red'])
    (tmp_path / 'export.json').write_text(json.dumps([label_studio_task('rectanglelabels', value, image)]))
    coco, found = read(tmp_path / 'export.json', images)
    assert objects_of(coco) == [('red', [24, 32, 48, 16])] and found == []


def test_label_studios_polygons_and_turned_rectangles_have_masks_and_brushes_are_refused(
    images: Path, tmp_path: Path
) -> None:
    tasks = [
        label_studio_task('polygonlabels', dict(points=[[25, 25], [50, 25], [50, 75]], polygonlabels=['red'])),
        label_studio_task(
            'rectanglelabels',
            dict(x=50, y=25, width=25, height=25, rotation=90, rectanglelabels=['red']),
            '/data/upload/b.jpg',
        ),
    ]
    (tmp_path / 'export.json').write_text(json.dumps(tasks))
    coco, found = read(tmp_path / 'export.json', images)
    assert objects_of(coco) == [('red', [24, 16, 24, 32])] and found == []
    np.testing.assert_allclose(objects_of(coco, 'b')[0][1], [32, 16, 16, 24], atol=1e-6)
    brush = label_studio_task('brushlabels', dict(brushlabels=['red'], rle=[1]))
    (tmp_path / 'export.json').write_text(json.dumps([*tasks, brush]))
    _, found = read(tmp_path / 'export.json', images)
    assert any('export brushes as COCO' in line for line in found)


def test_cvats_boxes_polygons_and_masks(images: Path, tmp_path: Path) -> None:
    (tmp_path / 'annotations.xml').write_text(
        f'<annotations><version>1.1</version><image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">'
        '<polygon label="red" points="10,8;40,8;40,28;10,28"/>'
        '<mask label="blue" rle="1, 2, 1, 2" left="5" top="6" width="3" height="2"/>'
        '<polyline label="red" points="1,1;2,2"/></image></annotations>'
    )
    coco, found = read(tmp_path / 'annotations.xml', images)
    assert objects_of(coco) == [('blue', [6, 6, 2, 2]), ('red', [10, 8, 30, 20])]
    decoded = mask_codec.decode(coco.annotations[0]['segmentation'])
    assert decoded[6:8, 5:8].tolist() == [[0, 1, 1], [0, 1, 1]] and decoded.sum() == 4
    assert len(found) == 1 and 'polyline is no area' in found[0]


def test_the_tool_writes_coco_json_beside_the_leaf_with_the_training_datas_class_order(
    images: Path, tmp_path: Path
) -> None:
    write_voc(tmp_path / 'voc', 'a', OBJECTS)
    write_voc(tmp_path / 'voc', 'b', OBJECTS[:1])
    for split, name in (('train', 'a'), ('val', 'b')):
        (tmp_path / f'{split}.txt').write_text(f'{name}  1\n')
    args = ['det', '--out', tmp_path / 'leaf.py', '--base', ROOT / 'det_configs/addp_tiny_maskrcnn_128px.py']
    for split in ('train', 'val'):
        args += [f'--{split}-labels', tmp_path / 'voc', f'--{split}-images', images]
        args += [f'--{split}-list', tmp_path / f'{split}.txt']
    assert MAIN(list(map(str, args))) == 0
    config = Config.fromfile(tmp_path / 'leaf.py')
    assert config.metainfo.classes == ['grün', 'red']
    with DefaultScope.overwrite_default_scope('mmdet'):
        from mmdet.registry import DATASETS

        train, val = (DATASETS.build(config[f'{split}_dataloader'].dataset) for split in ('train', 'val'))
    assert [sorted(data.get_cat_ids(0)) for data in (train, val)] == [[0, 1], [1]]
    assert sorted(path.name for path in tmp_path.glob('leaf_*.json')) == ['leaf_train.json', 'leaf_val.json']


def test_formats_are_told_by_what_is_there(images: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / 'voc', 'a', OBJECTS)
    assert detect_format(tmp_path / 'voc') == 'voc'
    for name, text, kind in (
        ('a.json', '{"images": []}', 'coco'),
        ('b.json', '[{"data": {"image": "a"}}]', 'label-studio'),
        ('c.xml', '<annotations/>', 'cvat'),
    ):
        (tmp_path / name).write_text(text)
        assert detect_format(tmp_path / name) == kind
    for source in (images, tmp_path / 'nowhere', images / 'a.jpg'):
        with pytest.raises(ValueError, match=str(source)):
            detect_format(source)


@pytest.mark.parametrize(
    ('name', 'text'),
    [('a.txt', 'red\nblue\n'), ('a.json', '["red", "blue"]'), ('a.yaml', 'names: {0: red, 1: blue}')],
)
def test_class_names_come_from_text_json_and_yaml(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding='utf-8-sig')
    assert read_class_names(tmp_path / name) == ['red', 'blue']


def test_names_of_yaml_that_aliases_make_endless_are_refused_at_once(tmp_path: Path) -> None:
    lines = ['a0: &a0 [x, x]', *(f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 40))]
    (tmp_path / 'data.yaml').write_text('\n'.join([*lines, 'names: [*a39]']))
    with pytest.raises(ValueError, match='wanted names'):
        read_class_names(tmp_path / 'data.yaml')


def test_an_image_within_label_studios_json_is_an_error_of_its_task(images: Path, tmp_path: Path) -> None:
    address = 'data:image/png;base64,' + 'A' * 10_000
    result = dict(type='rectanglelabels', value=dict(rectanglelabels=['c'], x=1, y=1, width=9, height=9))
    task = dict(data=dict(image=address), annotations=[dict(result=[result])])
    (tmp_path / 'a.json').write_text(json.dumps([task]))
    findings = Findings()
    read_annotations(tmp_path / 'a.json', images, findings)
    assert findings.num_errors and 'names no file' in '\n'.join(findings.lines(10))


def test_a_list_of_a_split_has_names_with_or_without_folder_ending_and_flag(tmp_path: Path) -> None:
    (tmp_path / 'a.txt').write_text('a\nimages/b.jpg\nc  1\nd e.png\n')
    assert read_split_list(tmp_path / 'a.txt') == ['a', 'b', 'c', 'd e']


def test_bccd_has_the_objects_of_its_xml_files(shared_dir: Path) -> None:
    root = shared_dir / 'data' / 'bccd'
    for split, num_images in (('train', 205), ('val', 87)):
        names = read_split_list(root / 'ImageSets' / 'Main' / f'{split}.txt')
        coco, _ = read(root / 'Annotations', root / 'JPEGImages', names=names)
        wanted: Counter[str | None] = Counter()
        for name in names:
            wanted.update(n.text for n in ElementTree.parse(root / 'Annotations' / f'{name}.xml').iter('name'))
        assert len(coco.images) == num_images
        assert Counter(coco.categories[r['category_id']] for r in coco.annotations) == wanted
