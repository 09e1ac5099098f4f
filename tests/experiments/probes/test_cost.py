"""What the features of a backbone cost, measured once."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments.probes import cost as module
from experiments.probes.backbones import build, find_source
from experiments.probes.cost import COSTS_CSV, known_cost, measure_cost, read_costs, write_costs
from experiments.probes.features import Extraction

SIZE = (64, 48)


def cost_of(name, images, size=SIZE, precision='fp32'):
    return measure_cost(name, 'd', extraction(name, size, precision), images)


def extraction(name, size=SIZE, precision='fp32'):
    source = find_source(name)
    return Extraction(
        lambda blocks: build(source, blocks), (source.depth,), source.mean, source.std, size, precision, 'cpu'
    )


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
    return sorted(folder.iterdir())


@pytest.mark.parametrize(('name', 'prefix', 'mlp_ratio'), [('random/tiny', 0, 4), ('random/test_vit', 1, 3)])
def test_arithmetic_and_parameters_are_those_of_the_layers(images, name, prefix, mlp_ratio):
    source = find_source(name)
    cost = cost_of(name, images)
    module_ = build(source, (source.depth,))
    assert cost.parameters == sum(p.numel() for p in module_.parameters())
    patches, width = 4 * 3, source.width
    tokens = patches + prefix
    in_blocks = source.depth * (2 * tokens * (4 + 2 * mlp_ratio) * width**2 + 4 * tokens**2 * width)
    embedding = 2 * patches * 3 * 16**2 * width
    assert cost.giga_flops == pytest.approx((in_blocks + embedding) / 1e9, rel=1e-9)
    assert cost.milliseconds > 0 and cost.device.startswith('cpu, ') and cost.peak_mib > 0


def test_what_was_measured_for_the_same_backbone_size_and_device_is_not_measured_again(images, tmp_path):
    name = 'random/test_vit'
    cost = cost_of(name, images)
    write_costs(tmp_path, [cost])
    found = known_cost(tmp_path, name, 'd', extraction(name))
    assert found is not None and found.milliseconds == pytest.approx(cost.milliseconds, abs=0.01)
    assert known_cost(tmp_path, name, 'e', extraction(name)) is None
    for other in (((64, 64), 'fp32'), (SIZE, 'bf16')):
        assert known_cost(tmp_path, name, 'd', extraction(name, *other)) is None
    assert '64x48' in (tmp_path / COSTS_CSV).read_text(encoding='utf-8')


def test_a_system_that_tells_no_memory_leaves_that_column_empty(images, monkeypatch, tmp_path):
    monkeypatch.setattr(module.sys, 'platform', 'darwin')
    cost = cost_of('random/test_vit', images)
    assert cost.peak_mib is None
    write_costs(tmp_path, [cost])
    assert read_costs(tmp_path)[0].peak_mib is None


def test_a_damaged_file_counts_as_none(tmp_path):
    (tmp_path / 'costs.json').write_text(json.dumps([{'backbone': 'a'}]), encoding='utf-8')
    assert read_costs(tmp_path) == []
