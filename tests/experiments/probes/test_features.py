"""The cache of features: whole files or none, cut runs go on, runs share the work, and its size has a bound."""

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import experiments.probes.features as features
from experiments.probes.data import Pairs
from experiments.probes.features import Extraction, FeatureCache, FeatureKey, missing_bytes, normalised

SIZE = (8, 4)
BLOCKS = (1, 3)


class Counting(nn.Module):
    """Maps of two blocks, one pixel a patch; counts the images."""

    def __init__(self):
        super().__init__()
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return torch.cat((images, images.square()), 1), torch.cat((images, images.sin()), 1)


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(rng.integers(0, 255, (4, 8, 3), dtype=np.uint8)).save(tmp_path / f'{index}.png')
    files = tuple(sorted(tmp_path.glob('*.png')))
    return Pairs('val', files, files)


@pytest.fixture(autouse=True)
def _two_images_a_file(monkeypatch):
    monkeypatch.setattr(features, 'IMAGES_PER_FILE', 2)
    monkeypatch.setattr(features, '_POLL_SECONDS', 0.02)


def extraction(module):
    return Extraction(lambda blocks: module, BLOCKS, (100.0,) * 3, (50.0,) * 3, SIZE, 'fp32', 'cpu')


def extract(cache, key, module, pairs):
    with cache.hold(key) as folder:
        return extraction(module).run(folder, pairs, lambda done, total: None)


KEY = FeatureKey('backbone', 'images', SIZE, 'fp32')


def test_features_are_the_normalised_maps_and_are_computed_once(tmp_path, pairs):
    cache, module = FeatureCache(tmp_path / 'cache', 10**9), Counting()
    found = extract(cache, KEY, module, pairs)
    again = extract(cache, KEY, module, pairs)
    assert module.images == len(pairs)
    pixels = torch.from_numpy(np.array(Image.open(pairs.images[3]))).permute(2, 0, 1)[None].float()
    wanted = [normalised(one)[0].numpy() for one in Counting()((pixels - 100) / 50)]
    np.testing.assert_array_equal(found.map(3, (1,)), wanted[0])
    np.testing.assert_array_equal(again.map(3, BLOCKS), np.concatenate(wanted, -1))


def test_a_cut_run_goes_on_and_a_file_that_is_gone_is_made_again(tmp_path, pairs):
    cache, module = FeatureCache(tmp_path / 'cache', 10**9), Counting()
    found = extract(cache, KEY, module, pairs)
    before = found.map(2, BLOCKS)
    features.feature_file(found.folder, 3, 1).unlink()
    (found.folder / 'block03' / '.00001.npy.elsewhere.1.part').write_bytes(b'half')
    np.testing.assert_array_equal(extract(cache, KEY, module, pairs).map(2, BLOCKS), before)
    assert module.images == len(pairs) + 2


@pytest.mark.parametrize('num_bytes', [0, 40, 200])
def test_a_file_that_was_cut_is_made_again(num_bytes, tmp_path, pairs):
    cache, module = FeatureCache(tmp_path / 'cache', 10**9), Counting()
    found = extract(cache, KEY, module, pairs)
    before, cut = found.map(0, BLOCKS).copy(), features.feature_file(found.folder, 3, 0)
    cut.write_bytes(cut.read_bytes()[:num_bytes])
    assert features.missing_bytes(found.folder, len(pairs), (3,), (1, 1), 1) > 0
    np.testing.assert_array_equal(extract(cache, KEY, module, pairs).map(0, BLOCKS), before)


def test_a_file_that_another_process_is_making_is_left_to_it_and_waited_for(tmp_path, pairs):
    cache, module = FeatureCache(tmp_path / 'cache', 10**9), Counting()
    context = multiprocessing.get_context('fork')
    claimed = context.Event()

    def other():
        with FeatureCache(cache.root, 10**9).hold(KEY) as folder:
            assert folder.try_claim(0)
            claimed.set()
            time.sleep(0.3)
            extraction(Counting())._write(folder.path, 0, extraction(None).compute(Counting(), pairs.images[:2]))
            folder.release(0)

    process = context.Process(target=other)
    process.start()
    assert claimed.wait(20)
    found = extract(cache, KEY, module, pairs)
    process.join()
    assert process.exitcode == 0
    assert module.images == len(pairs) - 2
    assert found.map(0, BLOCKS).shape == (4, 8, 12)


def test_what_was_not_used_for_longest_makes_room_but_nothing_in_use(tmp_path, pairs):
    cache = FeatureCache(tmp_path / 'cache', 10**9)
    keys = [FeatureKey(name, 'images', SIZE, 'fp32') for name in 'abc']
    for key in keys[:2]:
        extract(cache, key, Counting(), pairs)
        time.sleep(0.02)
    cache.max_bytes = sum(features._folder_bytes(cache.root / key.name) for key in keys[:2]) + 10
    with cache.hold(keys[0]):
        cache.make_room(1000)
        assert (cache.root / keys[0].name).is_dir() and not (cache.root / keys[1].name).exists()
        with pytest.raises(ValueError, match='raise --cache-gb'):
            cache.make_room(cache.max_bytes)


def test_what_is_missing_is_counted_in_bytes(tmp_path, pairs):
    cache = FeatureCache(tmp_path / 'cache', 10**9)
    assert missing_bytes(cache.root / KEY.name, 5, BLOCKS, (4, 8), 6) == 3 * 2 * (2 * 4 * 8 * 6 * 2)
    found = extract(cache, KEY, Counting(), pairs)
    assert missing_bytes(found.folder, 5, BLOCKS, (4, 8), 6) == 0


@pytest.mark.parametrize('change', [dict(backbone='x'), dict(images='x'), dict(size=(4, 8)), dict(precision='bf16')])
def test_everything_that_features_depend_on_is_in_the_name(change):
    assert FeatureKey(**{**KEY.__dict__, **change}).name != KEY.name


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match='not finite'):
        normalised(torch.full((1, 4, 2, 2), float('nan')))


def test_the_digest_of_images_is_of_their_contents(tmp_path, pairs):
    copies = tuple(Path(path.rename(path.with_name(f'other{path.name}'))) for path in pairs.images)
    assert Pairs('val', copies, copies).digest() == Pairs('train', copies, ()).digest()
    other = Pairs('val', copies[::-1], copies).digest()
    assert other != Pairs('val', copies, copies).digest()
