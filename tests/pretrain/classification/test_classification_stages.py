"""Classification runs: stop and resume, mixed precision, bad data, several processes, few-shot, prediction."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from running import logged_losses, run_tool
from stopping import stopped_after
from tiny_classes import CLASSES, NUM_VAL, ROOT, small_leaf, write_classes

from addp_backbone.checkpoint.convert import read_checkpoint
from addp_backbone.predict.predictor import Predictor
from addp_backbone.predict.run import predict_images
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.seeding import SampleIndex, SeededInfiniteSampler
from pretrain.classification.few_shot import summarise

LEAVES = ('finetune_base_100e', 'finetune_base_100e_ema', 'linear_base')
TWO_EPOCHS = ('train_cfg.max_epochs=2', 'log_level=ERROR')


@pytest.fixture(scope='module')
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp('classes'))


@pytest.fixture(scope='module')
def trained(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config and the checkpoint of two epochs with it."""
    folder = tmp_path_factory.mktemp('trained')
    leaf = small_leaf(folder / 'leaf.py', 'finetune_base_100e', class_folders)
    run_tool('train', leaf, '--work-dir', folder, options=TWO_EPOCHS)
    return leaf, folder / 'iter_8.pth'


@pytest.mark.parametrize('name', LEAVES)
def test_a_resumed_run_ends_with_the_unbroken_runs_losses_and_weights(
    name: str, class_folders: Path, tmp_path: Path
) -> None:
    leaf = small_leaf(tmp_path / 'leaf.py', name, class_folders)
    unbroken, broken = tmp_path / 'unbroken', tmp_path / 'broken'
    run_tool('train', leaf, '--work-dir', unbroken, options=TWO_EPOCHS)
    run_tool('train', leaf, '--work-dir', broken, options=(*TWO_EPOCHS, *stopped_after(3)))
    run_tool('train', leaf, '--work-dir', broken, '--resume', options=TWO_EPOCHS)
    wanted, found = logged_losses(unbroken), logged_losses(broken)
    assert sorted(found) == list(range(1, 9))
    assert [found[i]['loss'] for i in found] == [wanted[i]['loss'] for i in found]
    assert len({record['loss'] for record in found.values()}) == 8
    weights = [read_checkpoint(folder / 'iter_8.pth') for folder in (unbroken, broken)]
    for part in ('state_dict', *(['ema_state_dict'] if name.endswith('_ema') else [])):
        assert all(torch.equal(weights[0][part][key], weights[1][part][key]) for key in weights[0][part]), part


def test_mixed_precision_trains_close_to_float32(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run_tool('train', trained[0], '--work-dir', tmp_path, '--amp', options=TWO_EPOCHS)
    plain, mixed = logged_losses(trained[1].parent), logged_losses(tmp_path)
    assert [mixed[i]['loss'] for i in range(1, 9)] == pytest.approx([plain[i]['loss'] for i in range(1, 9)], rel=0.01)
    weights = [
        read_checkpoint(path)['state_dict']['backbone.blocks.0.mlp.fc1.weight']
        for path in (trained[1], tmp_path / 'iter_8.pth')
    ]
    assert weights[0].dtype == weights[1].dtype == torch.float32 and not torch.equal(*weights)


@pytest.mark.long
def test_two_processes_measure_what_one_does(class_folders: Path, tmp_path: Path) -> None:
    leaf = small_leaf(tmp_path / 'leaf.py', 'linear_base', class_folders)
    assert NUM_VAL % 2
    subprocess.run(
        [
            ROOT / 'tools/dist_train.sh',
            leaf,
            '2',
            '--work-dir',
            tmp_path / 'two',
            '--cfg-options',
            'train_cfg.max_epochs=6',
            'log_level=ERROR',
        ],
        check=True,
        capture_output=True,
    )
    checkpoint = tmp_path / 'two' / 'iter_12.pth'
    run_tool(
        'test',
        leaf,
        checkpoint,
        '--work-dir',
        tmp_path / 'one',
        '--out',
        tmp_path / 'one.json',
        options=('log_level=ERROR',),
    )
    one = json.loads((tmp_path / 'one.json').read_text(encoding='utf-8'))
    log = next((tmp_path / 'two').glob('*/vis_data/scalars.json')).read_text(encoding='utf-8').splitlines()
    two = next(
        record for record in map(json.loads, log) if 'accuracy/top1' in record
    )  # both ranks' BatchNorm is the checkpoint's
    assert {name: two[name] for name in one} == one and set(one) == {'accuracy/top1', 'accuracy/top5'}
    assert one['accuracy/top1'] * NUM_VAL / 100 == pytest.approx(round(one['accuracy/top1'] * NUM_VAL / 100), abs=1e-3)


def test_train_and_val_with_different_classes_are_refused_with_the_names(class_folders: Path, tmp_path: Path) -> None:
    data = shutil.copytree(class_folders, tmp_path / 'data')
    (data / 'val' / 'fawn').rename(data / 'val' / 'gold')
    with pytest.raises(LaunchError, match=r'Only in train: fawn.*Only in val: gold'):
        run_tool('train', small_leaf(tmp_path / 'leaf.py', 'linear_base', data), '--work-dir', tmp_path)


def test_a_number_of_classes_that_is_not_the_datas_is_refused(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r'model.num_classes=1000, but the train data has 6 classes'):
        run_tool(
            'train',
            small_leaf(tmp_path / 'leaf.py', 'linear_base', class_folders),
            '--work-dir',
            tmp_path,
            options=('model.num_classes=1000',),
        )


def test_classes_of_a_list_are_those_of_its_labels(class_folders: Path, tmp_path: Path) -> None:
    for split in ('train', 'val'):
        lines = [
            f'{split}/{path.parent.name}/{path.name} {CLASSES.index(path.parent.name)}'
            for path in (class_folders / split).rglob('*.png')
        ]
        (class_folders / f'{split}.txt').write_text('\n'.join(lines), encoding='utf-8')
    options = [
        f'{split}_dataloader.dataset.{key}={value}'
        for split, file in (('train', 'train'), ('val', 'val'), ('test', 'val'))
        for key, value in (('ann_file', f'{file}.txt'), ('data_prefix', ''))
    ]
    run_tool(
        'train',
        small_leaf(tmp_path / 'leaf.py', 'linear_base', class_folders),
        '--work-dir',
        tmp_path,
        options=(*stopped_after(1), 'log_level=ERROR', *options),
    )
    assert len(read_checkpoint(tmp_path / 'iter_1.pth')['state_dict']['head.fc.bias']) == len(CLASSES)


def test_an_unreadable_image_is_skipped_in_training_and_an_error_in_evaluation(
    class_folders: Path, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    data = shutil.copytree(class_folders, tmp_path / 'data')
    (data / 'train' / 'amber' / '0.png').write_bytes(b'no image')
    leaf = small_leaf(tmp_path / 'leaf.py', 'finetune_base_100e', data)
    run_tool('train', leaf, '--work-dir', tmp_path / 'run', options=('log_level=CRITICAL',))
    (data / 'val' / 'blue' / '0.png').write_bytes(b'no image')
    with pytest.raises(LaunchError, match=r'blue/0\.png cannot be read.*needs every image'):
        run_tool('test', leaf, trained[1], '--work-dir', tmp_path / 'test')


def test_repeated_augmentation_gives_an_image_to_neighbours_with_seeds_of_their_own() -> None:
    stream = iter(SeededInfiniteSampler(range(4), num_repeats=3, seed=0))
    drawn: list[SampleIndex] = [next(stream) for _ in range(24)]
    for start in range(0, 24, 3):
        assert len(set(drawn[start : start + 3])) == 1
    assert sorted(drawn[:12]) == sorted(drawn[12:]) == sorted([0, 1, 2, 3] * 3)
    assert len({index.seed for index in drawn}) == 24
    resumed = SeededInfiniteSampler(range(4), num_repeats=3, seed=0)
    resumed.skip(7)
    assert [next(iter(resumed)), next(iter(resumed)).seed] == [drawn[7], drawn[7].seed]


def test_few_shot_trains_on_its_images_and_tests_on_all(class_folders: Path, tmp_path: Path) -> None:
    leaf = small_leaf(
        tmp_path / 'leaf.py', 'linear_base', class_folders, 'few_shot = dict(images_per_class=2, seeds=(0, 1))'
    )
    run_tool('few_shot', leaf, '--work-dir', tmp_path / 'runs', options=('log_level=ERROR', 'few_shot.seeds=[1]'))
    summary = json.loads((tmp_path / 'runs' / 'few_shot.json').read_text(encoding='utf-8'))
    assert summary['images_per_class'] == 2 and list(summary['accuracy/top1']['values']) == ['1']
    meta = read_checkpoint(tmp_path / 'runs' / 'images_2' / 'seed_1' / 'iter_2.pth')  # 12 images in batches of 6
    assert 'images_per_class=2' in meta['meta']['cfg'] and 'subset_seed=1' in meta['meta']['cfg']


def test_few_shot_gives_mean_and_sample_deviation() -> None:
    summary = summarise({0: {'top1': 50.0}, 1: {'top1': 60.0}, 2: {'top1': 70.0}})
    assert summary == {'top1': {'values': {0: 50.0, 1: 60.0, 2: 70.0}, 'mean': 60.0, 'std': 10.0}}


def test_prediction_ranks_five_classes_and_agrees_with_the_model(
    trained: tuple[Path, Path], class_folders: Path, tmp_path: Path
) -> None:
    leaf, checkpoint = trained
    image = class_folders / 'val' / 'cyan' / '0.png'
    record = predict_images(leaf, checkpoint, image, tmp_path / 'out', device='cpu')[0]
    scores = [entry['score'] for entry in record['classes']]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True) and sum(scores) <= 1 + 1e-5
    assert {entry['category'] for entry in record['classes']} <= set(CLASSES) and (
        record['width'],
        record['height'],
    ) == (32, 40)
    predictor = Predictor(leaf, checkpoint, device='cpu')
    batch = predictor.model.data_preprocessor(
        dict(
            inputs=[
                predictor.pipeline(dict(img=Image.open(image).convert('RGB'), img_path=str(image), sample_idx=0))[
                    'inputs'
                ]
            ],
            data_samples=None,
        )
    )
    with torch.inference_mode():
        probabilities = predictor.model(batch['inputs'])[0].softmax(0)
    assert scores[0] == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert record['classes'][0]['label'] == int(probabilities.argmax())
    assert (tmp_path / 'out' / 'overlays' / '0.png').is_file()
