"""Which part of a pre-trained backbone to train on a data set of some size; what is measured of it is in the docs.

``docs/which_protocol.md`` has the evidence for each boundary, and says which of them are assumptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from addp_backbone.networks.arch import get_arch
from addp_backbone.networks.timm_vit.catalogue import published_arch

AUTO = 'auto'
FROZEN, LAST_HALF, LORA, ALL = 'frozen', 'last-half', 'lora', 'all'
PROTOCOLS = (FROZEN, LAST_HALF, LORA, ALL)
UP_TO_IMAGES = ((200, FROZEN), (10_000, LAST_HALF))  # more: everything
LORA_RANK = 8
# Where the base's learning rates are made for a frozen backbone (decay rate 1): those of the measured rows.
GENTLE_RATES = dict(decay_rate=0.9, backbone_lr_mult=0.1)
PATIENCE = 5  # validations, of ten in a schedule

_WORDS = {
    FROZEN: 'the backbone frozen',
    LAST_HALF: 'the last half of the blocks trained',
    LORA: f'low-rank differences of rank {LORA_RANK} trained',
    ALL: 'everything trained',
}


@dataclass(frozen=True)
class Protocol:
    """What a leaf config sets to train a part of the backbone.

    Attributes:
        name: One of :data:`PROTOCOLS`.
        backbone: Options of ``model.backbone``.
        paramwise: Options of ``optim_wrapper.paramwise_cfg``.
    """

    name: str
    backbone: dict[str, Any]
    paramwise: dict[str, Any]

    def __str__(self) -> str:
        return _WORDS[self.name]


def recommended(config: Config, num_images: int) -> str:
    """The protocol for a number of training images.

    Args:
        config: The recipe; one without pre-trained weights has to be trained as a whole.
        num_images: Number of training images.
    """
    if not has_weights(config.model.backbone):
        return ALL
    return next((name for limit, name in UP_TO_IMAGES if num_images <= limit), ALL)


def has_weights(backbone: Mapping[str, Any]) -> bool:
    """Whether a backbone's config names pre-trained weights."""
    return bool(backbone.get('init_cfg') or backbone.get('pretrained'))


def find_protocol(name: str, config: Config, num_images: int) -> Protocol:
    """What to set for a protocol.

    Args:
        name: One of :data:`PROTOCOLS`, or 'auto' for the recommended one.
        config: The recipe.
        num_images: Number of training images.

    Raises:
        ValueError: If the recipe's backbone has no pre-trained weights, but a part of it would stay as it is.
    """
    backbone = config.model.backbone
    name = recommended(config, num_images) if name == AUTO else name
    if name != ALL and not has_weights(backbone):
        raise ValueError(
            f'--protocol {name} leaves a part of the backbone as it is, but the base config has no pre-trained weights '
            '(model.backbone.init_cfg): choose a base with weights, or --protocol all'
        )
    depth = (published_arch(backbone.model) if 'model' in backbone else get_arch(backbone.get('arch', 'base'))).depth
    choices: dict[str, dict[str, Any]] = {
        FROZEN: dict(frozen=True),
        LAST_HALF: dict(frozen=depth // 2),
        LORA: dict(frozen=False, lora=dict(rank=LORA_RANK)),
        ALL: dict(frozen=False),
    }
    rates = config.optim_wrapper.get('paramwise_cfg') or {}
    gentle = name in (LAST_HALF, ALL) and rates.get('decay_rate') == 1.0 and backbone.get('frozen')
    return Protocol(name, choices[name], dict(GENTLE_RATES) if gentle else {})


def protocol_hint(config: Config, num_images: int, given: str | None) -> str:
    """What ``tools/new_dataset.py`` says about protocols.

    Args:
        config: The leaf that was written.
        num_images: Number of training images.
        given: ``--protocol``; None where it was not given.
    """
    name = recommended(config, num_images)
    if given is not None:
        chosen = name if given == AUTO else given
        return f'protocol: {chosen}, {_WORDS[chosen]}'
    return (
        f'recommended for {num_images} training images: {_WORDS[name]} (--protocol {name}) with --patience {PATIENCE}; '
        'the evidence is in docs/which_protocol.md'
    )
