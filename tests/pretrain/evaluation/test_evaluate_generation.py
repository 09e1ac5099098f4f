"""tools/evaluate_generation.py: FID and IS through torch-fidelity, and what they may be compared with."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import fidelity

from pretrain.evaluation import image_sets
from pretrain.evaluation.feature_extractors import RANDOM_CONVOLUTIONS
from pretrain.evaluation.fidelity import INCEPTION_FILE, find_inception_weights, label, measure
from pretrain.evaluation.image_sets import ImageSet, checksum_of_names

MAIN = runpy.run_path(str(Path(__file__).parents[3] / 'tools' / 'evaluate_generation.py'))['main']
OFFLINE = ['--feature-extractor', RANDOM_CONVOLUTIONS, '--allow-protocol-mismatch']
pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')  # torch-fidelity's own command
FRECHET = f'frechet_distance ({RANDOM_CONVOLUTIONS})'


def write_images(folder: Path, seed: int, count: int = 12, size_px: int = 32, ending: str = 'png') -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        colours = rng.integers(40 * seed, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((size_px, size_px)).save(folder / f'{index:05d}.{ending}')
    return folder


@pytest.fixture(scope='module')
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp('sets') / 'generated', 0)


@pytest.fixture(scope='module')
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp('sets') / 'reference', 2)


def run_own_command(monkeypatch, capsys, *options: str) -> dict[str, float]:
    """torch-fidelity's own command line, in this process so that our extractor is registered."""
    monkeypatch.setattr(sys, 'argv', ['fidelity', '--json', '--silent', '--cpu', '--no-cache', *options])
    capsys.readouterr()
    fidelity.main()
    return json.loads(capsys.readouterr().out)


def test_a_set_has_no_distance_to_itself(generated, reference):
    images, other = ImageSet.of_folder(generated), ImageSet.of_folder(reference)
    same = measure(images, images, RANDOM_CONVOLUTIONS, allow_mismatch=True)['metrics']
    different = measure(images, other, RANDOM_CONVOLUTIONS, allow_mismatch=True)['metrics']
    assert abs(same[FRECHET]) < 1e-4 * different[FRECHET]
    assert same[f'precision ({RANDOM_CONVOLUTIONS})'] == same[f'recall ({RANDOM_CONVOLUTIONS})'] == 1


def test_the_figures_equal_those_of_torch_fidelitys_own_command(generated, reference, tmp_path, monkeypatch, capsys):
    assert MAIN([str(generated), str(reference), '--out', str(tmp_path / 'F.json'), *OFFLINE]) == 0
    result = json.loads((tmp_path / 'F.json').read_text())
    wanted = run_own_command(
        monkeypatch,
        capsys,
        '--isc',
        '--fid',
        '--kid',
        '--prc',
        '--kid-subset-size',
        '12',
        '--feature-extractor',
        RANDOM_CONVOLUTIONS,
        '--input1',
        str(generated),
        '--input2',
        str(reference),
    )
    assert result['metrics'] == pytest.approx(label(wanted, RANDOM_CONVOLUTIONS), rel=1e-6)
    assert len(wanted) == 8


def test_inception_figures_equal_those_of_torch_fidelitys_own_command(generated, tmp_path, monkeypatch, capsys):
    """With random weights instead of the released ones; everything else is the same."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr('torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url', lambda *_, **__: None)
        patch.setattr(FeatureExtractorInceptionV3, 'load_state_dict', lambda *_: None)
        weights = FeatureExtractorInceptionV3('any', ['2048']).state_dict()
    torch.save(weights, tmp_path / INCEPTION_FILE)
    few = tmp_path / 'few'
    few.mkdir()
    for path in sorted(generated.iterdir())[:2]:
        os.link(path, few / path.name)
    assert (
        MAIN(
            [
                str(few),
                str(few),
                '--inception-weights',
                str(tmp_path / INCEPTION_FILE),
                '--metrics',
                'fid',
                '--allow-protocol-mismatch',
                '--out',
                str(tmp_path / 'F.json'),
            ]
        )
        == 0
    )
    result = json.loads((tmp_path / 'F.json').read_text())
    wanted = run_own_command(
        monkeypatch,
        capsys,
        '--fid',
        '--feature-extractor-weights-path',
        str(tmp_path / INCEPTION_FILE),
        '--input1',
        str(few),
        '--input2',
        str(few),
    )
    assert result['metrics'] == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert set(wanted) == {'frechet_inception_distance'}
    assert any('Inception weights with SHA-256' in mismatch for mismatch in result['protocol']['mismatches'])
    assert len(result['feature_extractor']['weights_sha256']) == 64


def test_the_result_says_what_was_measured_and_with_what(generated, reference):
    result = measure(
        ImageSet.of_folder(generated),
        ImageSet.of_folder(reference),
        RANDOM_CONVOLUTIONS,
        metrics=('fid',),
        allow_mismatch=True,
    )
    assert result['feature_extractor'] == {'name': RANDOM_CONVOLUTIONS}
    assert not any('fid' in name.lower() or 'inception' in name for name in result['metrics'])
    assert result['generated']['num_images'] == result['reference']['num_images'] == 12
    assert not result['protocol']['followed']
    assert any('12 generated images, wanted 50000' in mismatch for mismatch in result['protocol']['mismatches'])
    assert {'torch-fidelity', 'torch'} <= set(result['versions'])
    assert result['seconds'] > 0
    assert result['time'].endswith('+00:00')


def test_other_numbers_than_the_protocols_are_refused_unless_allowed(generated, reference, tmp_path, capsys):
    assert (
        MAIN(
            [
                str(generated),
                str(reference),
                '--out',
                str(tmp_path / 'F.json'),
                '--feature-extractor',
                RANDOM_CONVOLUTIONS,
            ]
        )
        == 1
    )
    message = capsys.readouterr().err
    assert '12 generated images, wanted 50000' in message
    assert '12 reference images, wanted 50000' in message
    assert '--allow-protocol-mismatch' in message
    assert not (tmp_path / 'F.json').exists()


def mismatches_of(generated: Path, reference: Path) -> list[str]:
    return image_sets.protocol_mismatches(ImageSet.of_folder(generated), ImageSet.of_folder(reference))


def test_sets_by_the_protocol_have_no_mismatch_and_each_departure_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(image_sets, 'NUM_IMAGES', 2)
    good = write_images(tmp_path / 'good', 0, 2, 256)
    assert mismatches_of(good, good) == []
    jpeg = write_images(tmp_path / 'jpeg', 0, 2, 256, 'jpg')
    assert mismatches_of(good, jpeg) == [
        'reference images: 2 x JPEG, wanted PNG (lossy files shift FID by more than 2)'
    ]
    (jpeg / '00000.jpg').rename(jpeg / '00000.png')  # still a JPEG
    assert '2 x JPEG' in mismatches_of(good, jpeg)[0]
    mixed = write_images(tmp_path / 'mixed', 0, 2, 256)
    Image.new('RGB', (256, 200)).save(mixed / '00001.png')
    assert mismatches_of(mixed, good) == ['generated images: sizes are mixed, 1 x 256x256, 1 x 256x200, wanted 256x256']
    small = write_images(tmp_path / 'small', 0, 2, 64)
    assert mismatches_of(good, small) == ['reference images: another size, 2 x 64x64, wanted 256x256']
    few = write_images(tmp_path / 'few', 0, 1, 256)
    assert mismatches_of(few, good) == ['1 generated images, wanted 2']


def test_a_reference_set_that_differs_from_its_manifest_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(image_sets, 'NUM_IMAGES', 2)
    good = write_images(tmp_path / 'good', 0, 2, 256)
    manifest = dict(num_images=2, names_sha256=checksum_of_names(['00000.png', '00001.png']))
    (good / 'manifest.json').write_text(json.dumps(manifest))
    assert mismatches_of(good, good) == []
    (good / '00001.png').rename(good / '00002.png')
    assert 'holds 2 images that are not the 2 of its manifest.json' in mismatches_of(good, good)[0]


def test_the_figures_of_a_run_are_no_images_of_the_set(generated, tmp_path):
    folder = write_images(tmp_path / 'run', 0, 3)
    for name in ('grid.png', 'steps.png'):
        Image.new('RGB', (99, 50)).save(folder / name)
    images = ImageSet.of_folder(folder)
    assert len(images.files) == 3
    assert images.describe()['figures_left_out'] == ['grid.png', 'steps.png']


def test_fewer_images_than_splits_still_have_figures(reference, tmp_path):
    few = ImageSet.of_folder(write_images(tmp_path / 'few', 0, 8))
    result = measure(few, ImageSet.of_folder(reference), RANDOM_CONVOLUTIONS, metrics=('isc',), allow_mismatch=True)
    assert result['options']['isc_splits'] == 8
    assert np.isfinite(list(result['metrics'].values())).all()


def test_mixed_sizes_can_be_measured_when_allowed(generated, tmp_path):
    mixed = write_images(tmp_path / 'mixed', 0, 4)
    Image.new('RGB', (40, 24)).save(mixed / '00001.png')
    assert MAIN([str(mixed), str(generated), '--metrics', 'fid', *OFFLINE]) == 0


def test_missing_inception_weights_are_named_with_their_source(generated, tmp_path, capsys):
    assert (
        MAIN(
            [
                str(generated),
                str(generated),
                '--inception-weights',
                str(tmp_path / 'none.pth'),
                '--allow-protocol-mismatch',
            ]
        )
        == 1
    )
    message = capsys.readouterr().err
    assert 'weights-inception-2015-12-05-6726825d.pth' in message
    assert 'https://github.com/toshas/torch-fidelity/releases/' in message
    assert '--inception-weights' in message


def test_weights_are_found_where_the_other_weights_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'exp' / 'pretrained_model' / INCEPTION_FILE
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_inception_weights().resolve() == path


class Malicious:
    def __reduce__(self):
        return os.mkdir, ('executed',)


def test_weights_that_would_execute_code_are_refused(generated, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'w.pth').write_bytes(pickle.dumps({'a': Malicious()}, protocol=2))
    assert MAIN([str(generated), str(generated), '--inception-weights', 'w.pth', '--allow-protocol-mismatch']) == 1
    assert 'w.pth is refused' in capsys.readouterr().err
    assert not (tmp_path / 'executed').exists()


def test_unreadable_and_missing_input_is_named(generated, tmp_path, capsys):
    broken = write_images(tmp_path / 'broken', 0, 5)
    (broken / '00003.png').write_bytes((broken / '00003.png').read_bytes()[:60])
    assert MAIN([str(broken), str(generated), '--metrics', 'fid', *OFFLINE]) == 1
    assert '00003.png cannot be read' in capsys.readouterr().err
    (broken / '00003.png').write_bytes(b'no image')
    for folder, message in (
        (broken, '00003.png cannot be read'),
        (tmp_path / 'nowhere', 'is not a folder'),
        (tmp_path, 'holds no images'),
    ):
        with pytest.raises(ValueError, match=message):
            ImageSet.of_folder(folder)


def test_an_unknown_extractor_is_refused_with_the_known_ones(generated):
    with pytest.raises(ValueError, match=f"unknown feature extractor 'x': use one of .*{RANDOM_CONVOLUTIONS}"):
        measure(ImageSet.of_folder(generated), ImageSet.of_folder(generated), 'x')
