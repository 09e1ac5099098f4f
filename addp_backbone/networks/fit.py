"""Models whose parts take their widths from the backbone, so that a config names a backbone and nothing else.

``model=dict(type='FitToBackbone', model_type='MaskRCNN', backbone=dict(type='TimmViT', model=NAME), ...)`` is built as
``MaskRCNN`` once these words are replaced, wherever they stand in the config:

=================== ==================================================================================================
``backbone.width``  channels of the backbone's maps
``backbone.mean``   the backbone's pre-training mean of the three colour channels (RGB), for pixels in [0, 255]
``backbone.std``    the same for the standard deviation
=================== ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from addp_backbone.files.images import PIXEL_MEAN, PIXEL_STD
from addp_backbone.networks.arch import get_arch
from addp_backbone.networks.timm_vit.catalogue import data_config, published_arch

_PREFIX = 'backbone.'


@MODELS.register_module()
def FitToBackbone(model_type: str, backbone: Mapping[str, Any], **model: Any) -> nn.Module:  # noqa: N802  (a config's type)
    """Builds a detector or segmentor whose widths and normalisation follow from its backbone.

    Args:
        model_type: Registered type of the model, e.g. 'MaskRCNN' or 'EncoderDecoder'.
        backbone: Config of a ``TimmViT`` or ``ADDPViT``.
        **model: The model's other arguments, with the words of this module's first lines in place of values.

    Returns:
        The model.

    Raises:
        ValueError: If the backbone has another type, or a word is unknown.
    """
    values = backbone_values(backbone)
    preprocessor = model.get('data_preprocessor') or {}
    if str(preprocessor.get('mean', '')).startswith(_PREFIX):
        name = backbone.get('model', backbone.get('arch'))
        print_log(
            f'normalisation of {name}: mean {_rounded(values["mean"])}, std {_rounded(values["std"])} (RGB, pixels in '
            '[0, 255])',
            logger='current',
        )
    return MODELS.build(ConfigDict(type=model_type, backbone=backbone, **_replace(model, values)))


def backbone_values(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """What the words stand for: ``width``, ``mean``, ``std``; errors as in :func:`FitToBackbone`."""
    kind = str(backbone.get('type', '')).rpartition('.')[2]
    if kind == 'TimmViT':
        config = data_config(backbone['model'])
        return dict(width=published_arch(backbone['model']).width, mean=list(config.mean), std=list(config.std))
    if kind == 'ADDPViT':
        return dict(width=get_arch(backbone.get('arch', 'base')).width, mean=list(PIXEL_MEAN), std=list(PIXEL_STD))
    raise ValueError(
        f'FitToBackbone knows the widths of TimmViT and ADDPViT, got backbone.type={backbone.get("type")!r}'
    )


def _replace(node: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a config tree with the words replaced."""
    if isinstance(node, Mapping):
        return ConfigDict({key: _replace(value, values) for key, value in node.items()})
    if isinstance(node, list | tuple):
        return type(node)(_replace(value, values) for value in node)
    if isinstance(node, str) and node.startswith(_PREFIX):
        word = node.removeprefix(_PREFIX)
        if word not in values:
            raise ValueError(f'{node!r} is unknown, wanted one of {[_PREFIX + name for name in values]}')
        return values[word]
    return node


def _rounded(numbers: list[float]) -> list[float]:
    return [round(number, 2) for number in numbers]
