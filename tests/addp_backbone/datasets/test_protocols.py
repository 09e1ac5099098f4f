"""Which part of the backbone a new data set's config trains: by the number of images, written so that it builds."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from addp_backbone.datasets.protocols import PROTOCOLS, find_protocol, protocol_hint, recommended
from addp_backbone.datasets.schedule import LeafOptions, fit_to_images, schedule_text
from addp_backbone.tuning.partial import Tuning

ROOT = Path(__file__).parents[3]
FROZEN_BASE, RECIPE, RANDOM = (
    ROOT / leaf
    for leaf in (
        'seg_configs/timm_tiny_upernet.py',
        'det_configs/addp_base_maskrcnn.py',
        'det_configs/addp_tiny_maskrcnn.py',
    )
)


@pytest.mark.parametrize(
    ('num_images', 'name'), [(1, 'frozen'), (200, 'frozen'), (201, 'last-half'), (10_000, 'last-half'), (10_001, 'all')]
)
def test_the_more_images_the_more_is_trained(num_images: int, name: str) -> None:
    assert recommended(Config.fromfile(RECIPE), num_images) == name
    assert f'(--protocol {name})' in protocol_hint(Config.fromfile(RECIPE), num_images, None)


def test_random_weights_are_never_frozen() -> None:
    config = Config.fromfile(RANDOM)
    config.model.backbone.init_cfg = None
    assert recommended(config, 10) == 'all'
    with pytest.raises(ValueError, match=r'has no pre-trained weights.*or --protocol all'):
        find_protocol('frozen', config, 10)


@pytest.mark.parametrize('base', [FROZEN_BASE, RECIPE])
@pytest.mark.parametrize('name', PROTOCOLS)
def test_a_protocol_sets_options_that_backbones_take_and_rates_only_where_the_base_is_made_for_a_frozen_one(
    name: str, base: Path
) -> None:
    config = Config.fromfile(base)
    protocol = find_protocol(name, config, 300)
    tuning = Tuning.from_options(protocol.backbone['frozen'], False, protocol.backbone.get('lora'))
    assert (tuning.frozen, tuning.lora is not None) == {
        'frozen': (True, False), 'last-half': (6, False), 'lora': (False, True), 'all': (False, False)
    }[name]  # fmt: skip
    gentle = base == FROZEN_BASE and name in ('last-half', 'all')
    assert protocol.paramwise == (dict(decay_rate=0.9, backbone_lr_mult=0.1) if gentle else {})
    values: dict = {}
    exec(schedule_text(fit_to_images(config, 300), LeafOptions(Path('a.py'), base), 'mIoU', protocol.paramwise), values)
    assert values['optim_wrapper'].get('paramwise_cfg', {}) == protocol.paramwise
