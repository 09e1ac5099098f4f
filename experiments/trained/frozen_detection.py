"""Frozen detection: the detector of one config, trained on each backbone of a probe, whose weights stay as they are.

All backbones get the config's data, image size, heads and schedule. A leaf config for each is written, in which the
backbone takes the place of the config's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config

from addp_backbone.files.atomic import replace_file
from addp_backbone.files.config_text import docstring_text, python_call
from addp_backbone.files.shipped import find_config
from addp_backbone.networks.arch import get_arch
from addp_backbone.runtime.launch import load_config
from experiments.trained.protocols import TRAININGS_FOLDER, Training

if TYPE_CHECKING:
    from experiments.probes.backbones import Source

NAME = 'frozen detection'
FOLDER = 'frozen_detection'  # of the leaf configs, within that of the trainings
PYRAMID_STRIDES = (4, 8, 16, 32)
_TIMM_STRIDE = 16  # patches of 14 px are resampled to it, as in our leaf configs
_STRIDES = (8, 16)  # of backbones from which the pyramid's scales can be made
_LEAF = '''"""Frozen detection with {name}. Written for a probe."""

_base_ = [{base}]

model = {model}
'''


def frozen_detection(
    config: str,
    sources: Sequence[Source],
    seeds: Sequence[int],
    out: Path,
    iters: int | None = None,
    amp: bool = False,
) -> tuple[Training, ...]:
    """Writes a leaf config for each backbone and says how it is trained.

    The map that pyramid and heads get is that of the block at three quarters of the depth (DINOv2-S: the best of twelve
    in a probe). The backbone is not trained, and attention is global in every block, as in pre-training.

    Args:
        config: File, or name of a config of ours, of a detector with ``SimpleFeaturePyramid``.
        sources: The backbones.
        seeds: Of the trainings.
        out: Folder of the probe.
        iters: Iterations; None for those of the config.
        amp: Whether to train in mixed precision.

    Returns:
        A training for each backbone, all of the name :data:`NAME`.

    Raises:
        ValueError: If the config cannot be read or is for no such detector, ``iters`` is not positive, or the patches
            of an ADDPViT are neither 8 nor 16 px.
    """
    if iters is not None and (isinstance(iters, bool) or not isinstance(iters, int) or iters < 1):
        raise ValueError(f'frozen detection wants a number of iterations of 1 or more, got {iters!r}')
    base = find_config(config).absolute()
    cfg = load_config(str(base), {})
    _check_detector(cfg, config)
    options = () if iters is None else (f'train_cfg.max_iters={iters}', f'train_cfg.val_interval={iters}')
    trainings = []
    for source in sources:
        leaf = out.absolute() / TRAININGS_FOLDER / FOLDER / f'{_file_name(source.text)}.py'
        leaf.parent.mkdir(parents=True, exist_ok=True)
        replace_file(leaf, leaf_text(base, cfg, source))
        trainings.append(Training(NAME, str(leaf), options, amp, tuple(seeds), (source.text,)))
    return tuple(trainings)


def leaf_text(base: Path, cfg: Config, source: Source) -> str:
    """The config that puts a backbone into another config.

    Args:
        base: File of the other config.
        cfg: What it holds.
        source: The backbone.

    Raises:
        ValueError: If the patches of an ADDPViT are neither 8 nor 16 px.
    """
    stride = _TIMM_STRIDE if source.is_timm else source.patch_size
    if stride not in _STRIDES:
        raise ValueError(
            f'frozen detection: {source.text} has patches of {source.patch_size} px, and pyramids are made from maps '
            f'of stride {" or ".join(map(str, _STRIDES))}'
        )
    common = dict(out_indices=[max(0, round(source.depth * 3 / 4) - 1)], frozen=True)
    backbone: dict[str, Any] = dict(_delete_=True, img_size=cfg.model.backbone.get('img_size', 1024))
    if source.is_timm:
        backbone |= dict(type='TimmViT', stride=stride, norm_maps=True, **source.options, **common)
    else:
        arch = get_arch(source.options['arch'])
        sizes = dict(width=arch.width, depth=arch.depth, num_heads=arch.num_heads)
        backbone |= dict(type='ADDPViT') | dict(source.options) | dict(arch=sizes, **common)
    model = dict(
        type='FitToBackbone',
        model_type=cfg.model.get('model_type', cfg.model.type),
        data_preprocessor=dict(mean='backbone.mean', std='backbone.std'),
        backbone=_with_absolute_file(backbone),
        neck=dict(in_channels='backbone.width', scales=[stride / one for one in PYRAMID_STRIDES]),
    )
    return _LEAF.format(name=docstring_text(source.text), base=python_call(str(base)), model=python_call(model))


def _check_detector(cfg: Config, config: str) -> None:
    model = cfg.get('model') or {}
    neck = str((model.get('neck') or {}).get('type', '')).rpartition('.')[2]
    if neck != 'SimpleFeaturePyramid' or model.get('rpn_head') is None:
        raise ValueError(
            f'frozen detection wants the config of a detector with SimpleFeaturePyramid, such as one that '
            f'tools/new_dataset.py det writes, got {config}'
        )


def _with_absolute_file(backbone: Mapping[str, Any]) -> dict[str, Any]:
    init_cfg = backbone.get('init_cfg')
    if not init_cfg:
        return dict(backbone)
    return dict(backbone) | dict(init_cfg=dict(init_cfg, checkpoint=str(Path(init_cfg['checkpoint']).absolute())))


def _file_name(text: str) -> str:
    """A file name that no other backbone has."""
    letters = ''.join(c if c.isascii() and c.isalnum() else '_' for c in text)[:60].strip('_')
    return f'{letters}_{hashlib.sha256(text.encode()).hexdigest()[:6]}'
