"""Data sets of images: finding them, classes, unreadable files, worker processes, transforms."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader

from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.seeding import SampleIndex, SeedAugmentation
from pretrain.data.image_folder import ImageFolderDataset, read_image
from pretrain.data.image_list import PathTable, check_same_classes
from pretrain.data.transforms import PackImage, RandomFlipImage, RandomResizedCropImage, ResizeCenterCropImage

SIZE = 16


def save_image(path: Path, shade: int = 100, size: tuple[int, int] = (24, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (shade, shade, shade)).save(path)
    return path


def make_tree(root: Path, classes: tuple[str, ...] = ('ant', 'bee', 'cat'), per_class: int = 2) -> Path:
    for i, name in enumerate(classes):
        for j in range(per_class):
            save_image(root / name / f'{j}.png', shade=40 * i + j)
    return root


def dataset(root: Path, **options) -> ImageFolderDataset:
    return ImageFolderDataset(str(root), **{'pipeline': [ResizeCenterCropImage(SIZE), PackImage()], **options})


def shade(sample: dict) -> int:
    return int(sample['inputs'][0, 0, 0])


def names(data: ImageFolderDataset) -> list[str]:
    return [data.paths[i] for i in range(len(data))]


def test_a_folder_is_searched_at_any_depth_in_alphabetical_order_without_hidden_files(tmp_path):
    for name in ('b.png', 'a/z.JPG', 'a/deep/er/y.webp', '.hidden.png', '.cache/x.png'):
        save_image(tmp_path / name)
    (tmp_path / 'notes.txt').write_text('no image')
    assert names(dataset(tmp_path)) == ['b.png', 'a/z.JPG', 'a/deep/er/y.webp']


def test_a_link_that_leads_back_up_does_not_search_for_ever(tmp_path):
    save_image(tmp_path / 'a' / '0.png')
    (tmp_path / 'a' / 'up').symlink_to(tmp_path)
    assert names(dataset(tmp_path)) == ['a/0.png']


def test_class_folders_give_labels_in_alphabetical_order(tmp_path):
    data = dataset(make_tree(tmp_path), labels=True)
    assert data.metainfo['classes'] == ('ant', 'bee', 'cat')
    assert [int(data[i]['data_samples'].gt_label) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert data[4]['data_samples'].img_path == str(tmp_path / 'cat' / '0.png')


def test_given_classes_order_the_labels(tmp_path):
    (tmp_path / 'names.txt').write_text('cat\nant\nbee\n')
    make_tree(tmp_path / 'train')
    for classes in (('cat', 'ant', 'bee'), 'names.txt'):
        data = dataset(tmp_path, data_prefix='train', labels=True, classes=classes)
        assert [int(label) for label in data.labels] == [0, 0, 1, 1, 2, 2]
        assert names(data)[0] == 'cat/0.png'


def test_class_folders_other_than_the_given_classes_are_named(tmp_path):
    with pytest.raises(LaunchError, match=r'Without a folder: dog. Not in `classes`: ant, cat'):
        dataset(make_tree(tmp_path), labels=True, classes=('bee', 'dog'))


def test_a_class_without_images_is_named(tmp_path):
    (make_tree(tmp_path) / 'dog').mkdir()
    with pytest.raises(LaunchError, match='dog holds no image'):
        dataset(tmp_path, labels=True)


def test_a_list_gives_paths_with_spaces_and_labels(tmp_path):
    save_image(tmp_path / 'train' / 'a b.png', shade=7)
    save_image(tmp_path / 'train' / 'c.png', shade=9)
    (tmp_path / 'train.txt').write_text('a b.png 1\n\nc.png\t0\n')
    data = dataset(tmp_path, data_prefix='train', ann_file='train.txt', labels=True)
    assert [(shade(data[i]), int(data[i]['data_samples'].gt_label)) for i in range(2)] == [(7, 1), (9, 0)]
    assert data.metainfo['classes'] == ('0', '1')


def test_a_list_with_labels_serves_pre_training_too(tmp_path):
    save_image(tmp_path / 'c.png', shade=9)
    (tmp_path / 'train.txt').write_text('c.png 3\n')
    data = dataset(tmp_path, ann_file='train.txt')
    assert names(data) == ['c.png'] and data.metainfo['classes'] is None and 'gt_label' not in data[0]['data_samples']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a.png 0\nb.png\n', 'line 2: wanted "path label"'),
        ('a.png 0\nb.png 2\n', r'line 2: label 2, but there are 2 classes'),
        ('\n', 'empty'),
    ],
)
def test_a_wrong_list_is_refused_with_the_line(tmp_path, text, message):
    (tmp_path / 'train.txt').write_text(text)
    with pytest.raises(LaunchError, match=message):
        dataset(tmp_path, ann_file='train.txt', labels=True, classes=('x', 'y'))


def test_folders_without_images_and_missing_folders_are_refused_with_the_option(tmp_path):
    with pytest.raises(LaunchError, match='holds no image'):
        dataset(tmp_path)
    with pytest.raises(LaunchError, match=r'missing does not exist.*data_root and data_prefix'):
        dataset(tmp_path, data_prefix='missing')


def test_train_and_val_of_other_classes_are_refused_with_the_names():
    check_same_classes(('a', 'b'), ('a', 'b'))
    with pytest.raises(LaunchError, match=r'Only in train: b. Only in val: c, d'):
        check_same_classes(('a', 'b'), ('a', 'c', 'd'))
    with pytest.raises(LaunchError, match="class 0 is 'a' in train and 'b' in val"):
        check_same_classes(('a', 'b'), ('b', 'a'))


def test_the_next_image_stands_in_for_an_unreadable_one_which_is_reported_once(tmp_path, monkeypatch):
    make_tree(tmp_path)
    (tmp_path / 'ant' / '1.png').write_bytes(b'\x89PNG\r\n\x1a\nbroken')
    data = dataset(tmp_path)
    reports: list[str] = []
    monkeypatch.setattr('pretrain.data.image_folder.print_log', lambda message, **_: reports.append(message))
    assert [shade(data[i]) for i in range(3)] == [0, 40, 40]
    assert shade(data[1]) == 40
    assert len(reports) == 1 and 'ant/1.png cannot be read' in reports[0] and '1 unreadable' in reports[0]


def test_an_image_that_was_cut_is_unreadable_not_half_grey(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / 'a.jpg')
    (tmp_path / 'a.jpg').write_bytes((tmp_path / 'a.jpg').read_bytes()[:1500])
    save_image(tmp_path / 'b.png', shade=5)
    assert shade(dataset(tmp_path)[0]) == 5


def test_more_unreadable_images_than_allowed_stop_the_run_also_from_worker_processes(tmp_path):
    for i in range(6):
        save_image(tmp_path / f'{i}.png')
        if i % 2:
            (tmp_path / f'{i}.png').write_bytes(b'nothing')
    data = dataset(tmp_path, max_unreadable=2)
    assert shade(data[1]) == shade(data[3]) == 100
    with pytest.raises(LaunchError, match=r'3 of the 6 images.*5\.png.*max_unreadable=2'):
        list(DataLoader(data, batch_size=2, num_workers=2, collate_fn=pseudo_collate))


def test_worker_processes_survive_a_bad_file(tmp_path):
    make_tree(tmp_path)
    (tmp_path / 'bee' / '0.png').write_bytes(b'')
    loader = DataLoader(dataset(tmp_path), batch_size=2, num_workers=2, collate_fn=pseudo_collate)
    assert [shade(dict(inputs=image)) for batch in loader for image in batch['inputs']] == [0, 1, 41, 41, 80, 81]


def test_a_test_set_does_not_exchange_images(tmp_path):
    make_tree(tmp_path)
    (tmp_path / 'ant' / '1.png').write_bytes(b'')
    data = dataset(tmp_path, test_mode=True)
    with pytest.raises(LaunchError, match=r'ant/1\.png cannot be read.*a test set needs every image'):
        data[1]


def test_paths_take_no_more_memory_than_their_letters_and_a_number():
    paths = [f'n{i:08d}/n{i:08d}_{i}.JPEG' for i in range(1000)] + ['ü/ñ.jpg']
    table = PathTable(paths)
    assert [table[i] for i in range(len(table))] == paths
    assert table.bytes.nbytes + table.ends.nbytes == sum(len(path.encode()) for path in paths) + 8 * len(paths)
    assert all(isinstance(value, np.ndarray) for value in vars(table).values())


def test_a_data_set_can_be_sent_to_a_worker_that_is_no_fork(tmp_path):
    data = dataset(make_tree(tmp_path), labels=True)
    assert shade(pickle.loads(pickle.dumps(data))[4]) == 80


@pytest.mark.parametrize(
    ('mode', 'value', 'expected'), [('L', 77, 77), ('I;16', 77 * 257, 77), ('P', 0, 0), ('RGBA', (9, 9, 9, 255), 9)]
)
def test_every_kind_of_image_becomes_8_bit_rgb(tmp_path, mode, value, expected):
    image = Image.fromarray(np.full((4, 4), value, np.uint16)) if mode == 'I;16' else Image.new(mode, (4, 4), value)
    image.save(tmp_path / 'a.png')
    image = read_image(tmp_path / 'a.png')
    assert image.mode == 'RGB' and image.getpixel((0, 0)) == (expected,) * 3


def test_the_training_pipeline_gives_square_bytes_that_follow_from_the_samples_seed(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / 'a.png')
    data = dataset(
        tmp_path, pipeline=[SeedAugmentation(), RandomResizedCropImage(SIZE), RandomFlipImage(), PackImage()]
    )
    first, same, other = (data[SampleIndex(0, seed=seed)]['inputs'] for seed in (1, 1, 2))
    assert first.shape == (3, SIZE, SIZE) and first.dtype == torch.uint8
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_the_crop_covers_the_share_of_the_image_it_is_told(tmp_path):
    ramp = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (100, 1, 3))
    torch.manual_seed(0)
    crop = RandomResizedCropImage(SIZE, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    widths = [float(np.ptp(np.asarray(crop(dict(img=Image.fromarray(ramp)))['img']))) for _ in range(5)]
    assert all(44 <= width <= 51 for width in widths)


def test_flips_happen_half_of_the_time():
    image = Image.fromarray(np.array([[[0] * 3, [255] * 3]], dtype=np.uint8))
    torch.manual_seed(0)
    flipped = [RandomFlipImage(0.5)(dict(img=image))['img'].getpixel((0, 0))[0] > 0 for _ in range(400)]
    assert 160 < sum(flipped) < 240


def test_center_crop_keeps_the_middle():
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3)))
    image = np.asarray(ResizeCenterCropImage(50, crop_ratio=0.5)(dict(img=ramp))['img'])
    assert image.shape == (50, 50, 3) and abs(int(image[0, 0, 0]) - 75) <= 2 and abs(int(image[0, -1, 0]) - 125) <= 2
