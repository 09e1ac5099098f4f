"""The backbones that a probe takes: a converted file, ``timm/NAME``, ``timm/NAME=FILE``, ``random/NAME`` or ``FILE``.

They are computed as they were pre-trained: attention is global in every block unless the file has ViTDet's tables, and
the ``tokenizer_norm`` of an ADDP is in force (its blocks never saw other inputs; fine-tuning, which can adapt them,
leaves it out).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from addp_backbone.checkpoint.convert import CheckpointError, read_checkpoint, unwrap_state_dict
from addp_backbone.files.images import PIXEL_MEAN, PIXEL_STD
from addp_backbone.networks.arch import PRESETS, Arch
from addp_backbone.networks.timm_vit.backbone import TimmViT
from addp_backbone.networks.timm_vit.catalogue import data_config, family_of, published_arch
from addp_backbone.networks.vit import ADDPViT

TIMM, RANDOM = 'timm/', 'random/'
RANDOM_SEED = 0  # of the weights of random/NAME


@dataclass(frozen=True)
class Source:
    """Where a backbone comes from, before anything is built.

    Attributes:
        text: What was asked for; names the rows of the results.
        depth: Number of blocks.
        width: Channels of a token.
        patch_size: Side of a patch, in pixels.
        mean: Of R, G and B, in [0, 255], that the images are normalised with.
        std: Likewise.
        options: Arguments of the class.
        is_timm: Whether the class is :class:`TimmViT`, else :class:`ADDPViT`.
        has_class_token: Whether a class token stands in front of the patches.
    """

    text: str
    depth: int
    width: int
    patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: Mapping[str, Any]
    is_timm: bool
    has_class_token: bool = False

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (width, height) nearest to ``size`` that patches divide; at least one patch each way."""
        return tuple(max(1, round(side / self.patch_size)) * self.patch_size for side in size)  # type: ignore[return-value]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches of an image that was fitted to ``size``."""
        width, height = self.fitted(size)
        return height // self.patch_size, width // self.patch_size


def find_source(text: str) -> Source:
    """Looks up a backbone by its word, without allocating its weights.

    Args:
        text: ``timm/NAME`` (timm's published weights, from its cache or the hub), ``timm/NAME=FILE``, ``random/NAME``
            (NAME of timm, or a size of ADDPViT: tiny, base, large, huge), a file from
            ``tools/convert_checkpoint.py``, or ``random/FILE`` (random weights of that file's size).

    Returns:
        What is known of it.

    Raises:
        ValueError: If timm does not know the name, or a file is missing or no converted backbone.
    """
    if text.startswith(TIMM):
        name, equals, file = text.removeprefix(TIMM).partition('=')
        if equals and not Path(file).is_file():
            raise ValueError(f'{text}: the file {file!r} does not exist; wanted timm/NAME=FILE or timm/NAME')
        weights = dict(init_cfg=dict(type='Pretrained', checkpoint=file)) if equals else dict(pretrained=True)
        return _timm_source(text, name, weights)
    if text.startswith(RANDOM):
        name = text.removeprefix(RANDOM)
        if Path(name).is_file():
            return _file_source(text, name, with_weights=False)
        return _addp_source(text, PRESETS[name], 16, {}) if name in PRESETS else _timm_source(text, name, {})
    if not Path(text).is_file():
        raise ValueError(
            f'backbone {text!r}: there is no such file; wanted a file from tools/convert_checkpoint.py, timm/NAME, '
            'timm/NAME=FILE or random/NAME (python tools/list_backbones.py lists the names)'
        )
    return _file_source(text, text)


def build(source: Source, blocks: tuple[int, ...]) -> nn.Module:
    """Builds a backbone that returns the maps of some blocks, with its weights, in evaluation.

    Args:
        source: From :func:`find_source`.
        blocks: Ascending numbers of blocks, counted from 1.

    Returns:
        The module: images (B, 3, H, W) -> a (B, width, h, w) map per block, before any final norm, and perhaps that of
        the last block behind them.

    Raises:
        CheckpointError: If the weights do not fit or cannot be fetched.
    """
    kind = TimmViT if source.is_timm else ADDPViT
    has_weights = bool(source.options.get('init_cfg') or source.options.get('pretrained'))
    if not has_weights:  # what is drawn for a block must not depend on how many are built
        blocks = tuple(sorted({*blocks, source.depth}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        backbone = kind(**source.options, out_indices=tuple(block - 1 for block in blocks))
    if has_weights:
        backbone.init_weights()
    return backbone.eval().requires_grad_(False)


def backbone_digest(source: Source) -> str:
    """SHA-256 of how a backbone is computed and of all its weights, 64 hexadecimal digits; names of files do not count.

    Raises:
        CheckpointError: As :func:`build`.
    """
    module = build(source, (source.depth,))
    options = {name: value for name, value in source.options.items() if name != 'init_cfg'}
    digest = hashlib.sha256(repr((source.is_timm, sorted(options.items()), source.mean, source.std)).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f'{name} {tuple(tensor.shape)} {tensor.dtype}'.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def _timm_source(text: str, name: str, weights: Mapping[str, Any]) -> Source:
    family_of(name)
    config, arch = data_config(name), published_arch(name)
    with torch.device('meta'):
        first_block = TimmViT(name, out_indices=(0,))
    has_class_token = getattr(first_block.vit, 'cls_token', None) is not None
    options = dict(model=name, **weights)
    return Source(
        text,
        arch.depth,
        arch.width,
        first_block.patch_size,
        config.mean,
        config.std,
        options,
        is_timm=True,
        has_class_token=has_class_token,
    )


def _addp_source(text: str, arch: Arch, patch_size: int, options: Mapping[str, Any]) -> Source:
    options = dict(arch=arch, patch_size=patch_size, window_size=0, rel_pos=False) | dict(options)
    return Source(text, arch.depth, arch.width, patch_size, PIXEL_MEAN, PIXEL_STD, options, is_timm=False)


def _file_source(text: str, file: str, with_weights: bool = True) -> Source:
    """What the shapes in a converted file say; they do not tell the number of heads, which the known sizes give."""
    tensors = {
        name: value for name, value in unwrap_state_dict(read_checkpoint(file)).items() if hasattr(value, 'shape')
    }
    missing = [
        name for name in ('patch_embed.proj.weight', 'pos_embed', 'blocks.0.attn.qkv.weight') if name not in tensors
    ]
    if missing:
        raise CheckpointError(
            f'{file} is no converted backbone, it lacks {", ".join(missing)}: make one with '
            '`python tools/convert_checkpoint.py SRC DST`, or name the model of timm that it is of, timm/NAME=FILE'
        )
    width, _, patch_size, _ = tensors['patch_embed.proj.weight'].shape
    depth = len({name.split('.')[1] for name in tensors if name.startswith('blocks.')})
    arch = next((arch for arch in PRESETS.values() if (arch.width, arch.depth) == (width, depth)), None)
    if arch is None:
        known = ', '.join(f'{name} {arch.width} x {arch.depth}' for name, arch in PRESETS.items())
        raise CheckpointError(
            f'{file}: width {width} and depth {depth} are of no known size ({known}), and no tensor tells the number '
            'of heads: give the file that it was converted from with the model of timm that it is of, timm/NAME=FILE'
        )
    side = round(tensors['pos_embed'].shape[1] ** 0.5)
    options: dict[str, Any] = dict(
        pretrain_img_size=side * patch_size,
        tokenizer_norm='tokenizer_norm.weight' in tensors,
        init_cfg=dict(type='Pretrained', checkpoint=file) if with_weights else None,
        **_relative_positions(tensors, arch, patch_size),
    )
    return _addp_source(text, arch, patch_size, options)


def _relative_positions(tensors: Mapping[str, Tensor], arch: Arch, patch_size: int) -> dict[str, Any]:
    """Windows and image size that tables of relative positions are made for, where the file has them (ViTDet)."""
    sides = [
        (tensors[f'blocks.{i}.attn.rel_pos_h'].shape[0] + 1) // 2
        for i in range(arch.depth)
        if f'blocks.{i}.attn.rel_pos_h' in tensors
    ]
    if not sides:
        return {}
    return dict(rel_pos=True, window_size=min(sides), img_size=max(sides) * patch_size)
