"""tools/prepare_imagenet_val.py and pretrain/evaluation/reference_set.py: the reference set of FID and IS."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as T

from pretrain.evaluation.image_sets import checksum_of_names
from pretrain.evaluation.reference_set import prepare_reference_set

MAIN = runpy.run_path(str(Path(__file__).parents[3] / 'tools' / 'prepare_imagenet_val.py'))['main']
SIZES = {'n01/a.JPEG': (300, 280), 'n01/b.JPEG': (200, 500), 'n02/c.JPEG': (256, 256)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / 'val'
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)).resize(
            (width, height)
        ).save(path, quality=95)
    Image.new('L', (260, 300), 99).save(folder / 'n02' / 'd.JPEG')
    return folder


def test_images_are_resized_by_the_shorter_side_cropped_and_saved_lossless(source, tmp_path):
    prepare_reference_set(source, tmp_path / 'out')
    for name in SIZES:
        with Image.open(tmp_path / 'out' / f'{Path(name).stem}.png') as got:
            assert got.format == 'PNG'
            assert got.mode == 'RGB'
            with Image.open(source / name) as original:
                wanted = T.center_crop(T.resize(original, 256, T.InterpolationMode.BILINEAR), [256, 256])
            assert np.array_equal(np.asarray(got), np.asarray(wanted))


def test_several_workers_write_the_same_and_the_manifest_says_what_is_there(source, tmp_path, capsys):
    assert MAIN([str(source), str(tmp_path / 'one'), '--workers', '1']) == 0
    assert MAIN([str(source), str(tmp_path / 'two'), '--workers', '2']) == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ('one', 'two'))
    assert one == two
    manifest = json.loads(one['manifest.json'])
    names = ['a.png', 'b.png', 'c.png', 'd.png']
    assert sorted(one) == [*names, 'manifest.json']
    assert (manifest['num_images'], manifest['size'], manifest['format']) == (4, '256x256', 'PNG')
    assert manifest['names_sha256'] == checksum_of_names(names)
    assert 'the published protocol has 50000' in capsys.readouterr().out


def test_a_cut_run_goes_on_and_leaves_what_is_there(source, tmp_path):
    out = tmp_path / 'out'
    prepare_reference_set(source, out)
    kept = (out / 'a.png').stat().st_mtime_ns
    (out / 'b.png').unlink()
    (out / 'manifest.json').unlink()
    (out / '.b.png.77.part').write_bytes(b'half')
    prepare_reference_set(source, out)
    assert (out / 'a.png').stat().st_mtime_ns == kept
    assert {path.name for path in out.iterdir()} == {'a.png', 'b.png', 'c.png', 'd.png', 'manifest.json'}


def test_a_truncated_image_is_named_and_there_is_no_manifest(source, tmp_path, capsys):
    broken = source / 'n01' / 'a.JPEG'
    broken.write_bytes(broken.read_bytes()[:400])
    assert MAIN([str(source), str(tmp_path / 'out'), '--workers', '1']) == 1
    assert '1 of 4 images could not be read' in (message := capsys.readouterr().err)
    assert 'n01/a.JPEG' in message
    assert not (tmp_path / 'out' / 'manifest.json').exists()
    assert (tmp_path / 'out' / 'b.png').exists()
    assert not (tmp_path / 'out' / 'a.png').exists()


def test_what_cannot_be_the_validation_set_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match='is not a folder'):
        prepare_reference_set(tmp_path / 'nowhere', tmp_path / 'out')
    with pytest.raises(ValueError, match='lies within'):
        prepare_reference_set(source, source / 'out')
    (tmp_path / 'out').mkdir()
    with pytest.raises(ValueError, match='holds no images'):
        prepare_reference_set(tmp_path / 'out', tmp_path / 'other')
    (tmp_path / 'out' / 'x.png').touch()
    with pytest.raises(ValueError, match=r'1 images that do not come from .* \(x.png\)'):
        prepare_reference_set(source, tmp_path / 'out')
    Image.new('RGB', (9, 9)).save(source / 'n02' / 'a.png')
    with pytest.raises(ValueError, match=r'several images of one name \(a\)'):
        prepare_reference_set(source, tmp_path / 'other')


def test_another_size_is_possible_and_said_to_be_outside_the_protocol(source, tmp_path, capsys):
    assert MAIN([str(source), str(tmp_path / 'out'), '--workers', '1', '--size', '32']) == 0
    with Image.open(tmp_path / 'out/a.png') as got:
        assert got.size == (32, 32)
    assert json.loads((tmp_path / 'out/manifest.json').read_text())['size'] == '32x32'
    assert 'published protocol' in capsys.readouterr().out
