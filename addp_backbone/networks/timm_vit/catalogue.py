"""Which of timm's models :class:`TimmViT` takes, and what is known of one before it is built."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models import get_arch_name, is_model
from timm.models._registry import get_arch_pretrained_cfgs, get_pretrained_cfg

from addp_backbone.networks.arch import Arch

# timm's modules whose models are plain ViTs: one resolution, one width, blocks that differ in depth only.
FAMILIES = ('vision_transformer', 'eva', 'deit', 'beit', 'vision_transformer_sam', 'vision_transformer_relpos')
# Families that make tables for one image size and have no dynamic_img_size.
FIXED_SIZE_FAMILIES = ('beit', 'vision_transformer_sam', 'vision_transformer_relpos')
REFUSED = {
    'naflexvit': 'its forward pass takes patch sequences of several sizes; the classic model of the same weights is '
    'among the supported ones',
    'vision_transformer_hybrid': 'a convolutional stem stands in front of its blocks',
}
_HIERARCHICAL = 'it is no plain ViT (its maps change resolution or width along the depth); mmdet and mmseg can build it'


@dataclass(frozen=True)
class DataConfig:
    """How a model's images were prepared in pre-training (timm's pretrained_cfg).

    Attributes:
        mean: Of the three colour channels (RGB), for pixels in [0, 255].
        std: Likewise.
        img_size: Side of the pre-training images, in pixels.
        interpolation: 'bicubic' or 'bilinear', as images were resized.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    img_size: int
    interpolation: str


def supported_models() -> list[str]:
    """Names of all models that :class:`TimmViT` takes, without the tag of their weights; sorted."""
    return sorted(name for family in FAMILIES for name in timm.list_models(module=family))


def family_of(name: str) -> str:
    """Timm's module that a model is from.

    Args:
        name: timm's name, with or without a tag (``'vit_small_patch14_dinov2.lvd142m'``).

    Returns:
        One of :data:`FAMILIES`.

    Raises:
        ValueError: If timm does not know the name or its tag, or the model is none of the supported ones; with the
            reason.
    """
    arch = get_arch_name(name)
    if not is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), n=3, cutoff=0.6)
        hint = f'; did you mean {", ".join(near)}?' if near else ''
        raise ValueError(
            f'timm {timm.__version__} has no model {name!r}{hint} (python tools/list_backbones.py lists all supported)'
        )
    module = timm.model_entrypoint(arch).__module__.rpartition('.')[2]
    if module not in FAMILIES:
        reason = REFUSED.get(module, _HIERARCHICAL)
        raise ValueError(
            f'{name} of timm.models.{module} cannot be a TimmViT: {reason}. Supported: {", ".join(FAMILIES)}'
        )
    tags = [known.partition('.')[2] for known in get_arch_pretrained_cfgs(arch)]
    tag = name.partition('.')[2]
    if tag and tag not in tags:
        raise ValueError(f'timm {timm.__version__} has no weights {tag!r} of {arch}, only {", ".join(tags) or "none"}')
    return module


def data_config(name: str) -> DataConfig:
    """Reads how a model's images were prepared; errors as in :func:`family_of`."""
    family_of(name)
    cfg = get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None:
        raise ValueError(f'timm has no data config for {name}: give data_preprocessor.mean and std yourself')
    mean, std = (tuple(255.0 * value for value in values) for values in (cfg.mean, cfg.std))
    return DataConfig(mean, std, cfg.input_size[1], cfg.interpolation)  # type: ignore[arg-type]


def build_model(
    name: str,
    img_size: int | tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    num_blocks: int | None = None,
    position_grid: int | None = None,
) -> Any:
    """Builds a model by timm, with random weights, for any image size, without classifier.

    Args:
        name: As in :func:`family_of`.
        img_size: In pixels; for families with tables of a fixed size (:data:`FIXED_SIZE_FAMILIES`) only. None = as
            published.
        drop_path_rate: Stochastic depth of the last published block, in [0, 1); grows linearly from 0 at the first.
        num_blocks: Build only the first blocks; None = all.
        position_grid: Side of the grid of absolute positions, in tokens, where they do not follow ``img_size``; None =
            as published.

    Returns:
        timm's module.
    """
    options: dict[str, Any] = dict(num_classes=0, drop_path_rate=drop_path_rate, **size_options(name, img_size))
    if position_grid is not None:
        with torch.device('meta'):
            published: Any = build_model(name)
        options['img_size'] = position_grid * published.patch_embed.patch_size[0]
    if num_blocks is None:
        return timm.create_model(name, pretrained=False, **options)
    depth = published_arch(name).depth
    options['drop_path_rate'] = drop_path_rate * (num_blocks - 1) / max(1, depth - 1)
    try:
        return timm.create_model(name, pretrained=False, depth=num_blocks, **options)
    except AssertionError:  # key and value heads have an entry per block
        with torch.device('meta'):
            whole: Any = build_model(name)
        heads = tuple(block.attn.num_kv_heads for block in whole.blocks[:num_blocks])
        return timm.create_model(name, pretrained=False, depth=num_blocks, num_kv_heads=heads, **options)


def size_options(name: str, img_size: int | tuple[int, int] | None) -> dict[str, Any]:
    """Timm's arguments that make a model take images of any size."""
    if family_of(name) in FIXED_SIZE_FAMILIES:
        return {} if img_size is None else dict(img_size=img_size)
    return dict(dynamic_img_size=True)


@lru_cache(maxsize=512)
def published_arch(name: str) -> Arch:
    """Width, depth and heads of a model; nothing is allocated for it. Errors as in :func:`family_of`."""
    with torch.device('meta'):
        return arch_of(build_model(name))


def arch_of(model: Any) -> Arch:
    """Width, depth and heads of one of timm's models, as it is built."""
    heads = next(module.num_heads for module in model.blocks.modules() if hasattr(module, 'num_heads'))
    return Arch(model.embed_dim, len(model.blocks), heads)
