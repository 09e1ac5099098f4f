"""From a pre-training checkpoint to backbone weights: ADDP (published and ours), MAE, MAGE, timm, detectron2's ViTDet.

:func:`convert_state_dict` is a pure function; ``tools/convert_checkpoint.py`` is its command. Every source tensor is
mapped or dropped for a stated reason; what nobody can explain is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.matching import listed, match_tensors, unwrap_state_dict
from addp_backbone.checkpoint.parts import ANCHOR, choose_part, find_vits
from addp_backbone.checkpoint.storage import read_checkpoint, write_atomically
from addp_backbone.checkpoint.transformers_names import ANCHOR as TRANSFORMERS_ANCHOR
from addp_backbone.checkpoint.transformers_names import other_family, to_plain_vit

__all__ = [
    'FORMATS',
    'CheckpointError',
    'ConversionReport',
    'convert_state_dict',
    'read_checkpoint',
    'unwrap_state_dict',
    'write_atomically',
]

FORMATS = ('addp', 'mae', 'mage', 'timm', 'detectron2')

NO_CLS = 'the backbone has no cls or register tokens'
NO_FINAL_NORM = 'the backbone has no final norm (ViTDet)'
DECODER = 'pre-training decoder'
HEAD = 'classification head'
DETECTION_HEADS = 'detection heads and preprocessing, not part of backbone and pyramid'
FROZEN = 'frozen network of pre-training'

TO_TIMM_VIT = (
    'Use it with the backbone TimmViT, which computes every plain ViT of timm as published and reads the file as it '
    'is: '
    'det_configs/timm_maskrcnn.py, seg_configs/timm_upernet.py with --cfg-options model.backbone.model=NAME '
    'model.backbone.init_cfg.checkpoint=FILE (python tools/list_backbones.py lists the names)'
)

ASSUMED_OF_TIMM = (
    'no tensor tells the activation, rotary positions without weights, nor how pixels were normalised. Assumed: GELU, '
    "none, and ImageNet's mean and deviation in the configs. TimmViT takes all three from the model's name (SigLIP, "
    "RoPE-ViT, timm's augreg weights differ)"
)

# What a file of each format holds besides the trunk: (pattern of the whole name, reason it is dropped).
_HEADS = r'(head|head_dist|fc_norm|attn_pool|pooler|(cls_|distillation_)?classifier)\..+'
_COMMON_DROPS = ((r'cls_token|reg_token|dist_token', NO_CLS), (r'norm\..+', NO_FINAL_NORM))
_DROPS: dict[str, tuple[tuple[str, str], ...]] = {
    'addp': (
        *_COMMON_DROPS,
        (r'decoder[_.].+|mask_token|token_emb\..+|mlm_layer\..+|pos_(token|mask)_embed', DECODER),
        (r'(token_predictor|vqgan|tokenizer)\..+', FROZEN),
    ),
    'mage': (
        (r'pos_embed|cls_token', "MAGE's forward does not use it: its blocks saw rows of token_emb"),
        *_COMMON_DROPS,
        (r'decoder[_.].+|mask_token|mlm_layer\..+|token_emb\.word_embeddings\..+|token_emb\.position_ids', DECODER),
        (r'(vqgan|tokenizer)\..+', FROZEN),
    ),
    'mae': (*_COMMON_DROPS, (r'decoder[_.].+|mask_token', DECODER), (_HEADS, HEAD)),
    'timm': (*_COMMON_DROPS, (_HEADS, HEAD)),
    'detectron2': ((r'(proposal_generator|roi_heads)\..+|pixel_(mean|std)', DETECTION_HEADS),),
}
# What a plain ViT backbone does not compute: dropping it would change the features.
_REFUSED = (
    (r'blocks\.\d+\.attn\.(q_norm|k_norm)\..+', 'query and key normalisation'),
    (r'blocks\.\d+\.(attn|mlp)\.(norm|scale_norm)\..+', 'a norm within attention or MLP'),
    (r'norm_pre\..+', 'a norm in front of the blocks'),
    (r'.*relative_position.*|blocks\.\d+\.attn\.rel_pos\..+', 'biases of relative positions'),
    (r'blocks\.\d+\.attn\.[qv]_bias', 'biases of queries and values without one of keys (EVA, BEiT)'),
    (r'neck\.\d+\.(weight|bias)|blocks\.\d+\.mlp\.lin[12]\..+', "parts of SAM's encoder"),
    (r'(.+\.)?(rope|rotary)[._].+', 'rotary positions'),
    (r'reg_token', 'register tokens'),
    (r'attn_pool\..+', "SigLIP's attention pooling, and so perhaps an activation that no tensor tells"),
)
_LAYER_SCALE = re.compile(r'(?P<block>blocks\.\d+)\.(?:ls(?P<number>[12])\.gamma|gamma_(?P<number_>[12]))')
_TRUNK = re.compile(
    r'patch_embed\.proj\.(weight|bias)|pos_embed|tokenizer_norm\.(weight|bias)'
    r'|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)|blocks\.\d+\.attn\.rel_pos_[hw]'
)
_CLASSIFIER = re.compile(r'cls_token|norm\.(weight|bias)')  # what a classifier keeps besides the trunk
_MAGE_CLS_ROW = 1100 - 2025  # of the word embeddings, from their end: the fake class token in front of MAGE's tokens
_NECK_INDICES = {  # detectron2 numbers a level's layers with a hole where an activation stands, and nests a conv's norm
    'simfp_2': {'0': 0, '1': 1, '3': 3, '4': 4, '4.norm': 5, '5': 6, '5.norm': 7},
    'simfp_3': {'0': 0, '1': 1, '1.norm': 2, '2': 3, '2.norm': 4},
    'simfp_4': {'0': 0, '0.norm': 1, '1': 2, '1.norm': 3},
    'simfp_5': {'1': 1, '1.norm': 2, '2': 3, '2.norm': 4},
}


@dataclass
class ConversionReport:
    """What became of a checkpoint.

    Attributes:
        state_dict: Weights by the backbone's names; ``tokenizer_norm.*`` is in it where the source has one.
        format: The source's format, one of :data:`FORMATS`.
        dropped: Source name -> why the backbone does not use it.
        missing: Backbone names that the source lacks; the conversion is good only if empty.
        notes: What was changed on the way (resized positions or patches, names of another meaning).
        neck_state_dict: Weights by the names of ``SimpleFeaturePyramid`` (detectron2 only, else empty).
    """

    state_dict: dict[str, Tensor]
    format: str
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    neck_state_dict: dict[str, Tensor] = field(default_factory=dict)


def convert_state_dict(
    state_dict: Mapping[str, Any],
    format: str = 'auto',
    img_size: int | None = 256,
    patch_size: int | None = 16,
    keep_cls: bool = False,
    prefix: str | None = None,
    averaged: bool = False,
) -> ConversionReport:
    """Converts a checkpoint to the names and shapes of :class:`addp_backbone.ADDPViT`, or of the classifier's ViT.

    Args:
        state_dict: Names and tensors (or numpy arrays), or a checkpoint that has them under ``model`` or
            ``state_dict``.
        format: One of :data:`FORMATS`, or 'auto' to tell it from the names.
        img_size: The backbone's ``pretrain_img_size``: position embeddings are resized to its grid. None keeps the
            source's grid.
        patch_size: The backbone's patch size: patch embeddings are resampled to it (FlexiViT's pseudo-inverse). None
            keeps it.
        keep_cls: For :class:`addp_backbone.ADDPSegViT` and
            :class:`pretrain.classification.classifier.ClassifierViT`: ``cls_token``, its entry of ``pos_embed`` and the
            final ``norm`` (if the source has one) stay.
        prefix: Which of several networks in the source, see :func:`addp_backbone.checkpoint.parts.choose_part`.
        averaged: Take the averaged weights (EMA, teacher), likewise.

    Returns:
        The weights and what became of every tensor. The source is not changed.

    Raises:
        CheckpointError: If the format is unknown, a tensor cannot be explained, has the wrong shape, or belongs to a
            part that the backbone does not have, or there are several ViTs and none is chosen.
    """
    part, outside = choose_part(state_dict, prefix, averaged)
    tensors = {name: _as_tensor(name, value) for name, value in part.items()}
    tensors, format = _to_plain_names(tensors, format)
    report = ConversionReport({}, format, dropped=outside)
    _fold_layer_scale(tensors, report)
    for name in tensors:
        refused = next((what for pattern, what in _REFUSED if re.fullmatch(pattern, name)), None)
        if refused:
            raise CheckpointError(
                f'{name}: the checkpoint has {refused}, which ADDPViT has no place for; leaving it out would '
                f'change the features. {TO_TIMM_VIT}'
            )
    unexplained = []
    for name, tensor in tensors.items():
        reason = next((why for pattern, why in _DROPS[format] if re.fullmatch(pattern, name)), None)
        kept = keep_cls and _CLASSIFIER.fullmatch(name) and not (format == 'mage' and name == 'cls_token')
        if reason is not None and not kept:
            report.dropped[name] = reason
        elif format == 'mage' and name in _MAGE_NAMES:
            report.state_dict[_MAGE_NAMES[name]] = tensor
        elif format == 'detectron2' and name.startswith('simfp_'):
            report.neck_state_dict[_neck_name(name)] = tensor
        elif kept or _TRUNK.fullmatch(name):
            report.state_dict[name] = tensor
        else:
            unexplained.append(name)
    if unexplained:
        raise CheckpointError(
            f'{len(unexplained)} tensors have no meaning in format {format!r}: {", ".join(unexplained[:20])}'
            f'{" ..." if len(unexplained) > 20 else ""}. Give --format if it was detected wrongly, --prefix if they '
            'belong to another network'
        )
    if format == 'mage':
        report.notes.append('patch_embed.proj: as in the file, but MAGE never trains it (its encoder reads token ids)')
        report.notes.append('pos_embed <- token_emb.position_embeddings, tokenizer_norm <- token_emb.LayerNorm')
        words = tensors.get('token_emb.word_embeddings.weight', torch.empty(0))
        if keep_cls and len(words) >= -_MAGE_CLS_ROW:
            report.state_dict['cls_token'] = words[_MAGE_CLS_ROW].reshape(1, 1, -1)
            report.notes.append(
                f'cls_token <- token_emb.word_embeddings, row {len(words) + _MAGE_CLS_ROW} (the fake class token)'
            )
    if format == 'timm':
        report.notes.append(ASSUMED_OF_TIMM)
    _check_trunk(report, keep_cls)
    if not report.missing:
        _resize(report, img_size, patch_size, keep_cls)
    return report


_MAGE_NAMES = {
    'token_emb.position_embeddings.weight': 'pos_embed',
    'token_emb.LayerNorm.weight': 'tokenizer_norm.weight',
    'token_emb.LayerNorm.bias': 'tokenizer_norm.bias',
}


def _fold_layer_scale(tensors: dict[str, Tensor], report: ConversionReport) -> None:
    """Multiplies LayerScale into the layer in front of it, which computes the same; in place.

    ``gamma * (W x + b) = (gamma W) x + gamma b``, for the projection of attention and the second layer of the MLP.
    """
    scales = {name: found for name in tensors if (found := _LAYER_SCALE.fullmatch(name))}
    for name, found in scales.items():
        layer = f'{found["block"]}.{"attn.proj" if "1" in (found["number"], found["number_"]) else "mlp.fc2"}'
        gamma = tensors.pop(name).float()
        for part in ('weight', 'bias'):
            value = tensors.get(f'{layer}.{part}')
            if value is None or len(value) != len(gamma):
                raise CheckpointError(f'{name}: {layer}.{part}, which it scales, is missing or of another width')
            scaled = value.float() * gamma.reshape(-1, *[1] * (value.ndim - 1))
            tensors[f'{layer}.{part}'] = scaled.to(value.dtype)
        report.dropped[name] = f'LayerScale, folded into {layer} (computes the same)'
    if scales:
        report.notes.append(f'{len(scales)} LayerScale vectors folded into attn.proj and mlp.fc2')


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise CheckpointError(f'{name} is a {type(value).__name__}, wanted a tensor')
    return value


def _to_plain_names(tensors: dict[str, Tensor], format: str) -> tuple[dict[str, Tensor], str]:
    """Strips what wraps the ViT's names (``module.``, ``model.``, ``encoder.``, ``net.``) and settles the format."""
    prefixes = find_vits(tensors)
    if not prefixes:
        family = other_family(tensors)
        raise CheckpointError(
            f"the names are those of transformers' {family}, which ADDPViT does not compute. {TO_TIMM_VIT}"
            if family
            else f'no ViT found: no tensor is called {ANCHOR} (with or without a prefix); the first names are '
            f'{list(tensors)[:5]}. The backbone TimmViT reads files of transformers, OpenCLIP and Meta too'
        )
    prefix = min(prefixes, key=len)
    if prefix + TRANSFORMERS_ANCHOR in tensors:
        tensors, prefix = to_plain_vit(tensors, prefix), ''
    wrapper = re.sub(r'(encoder|net)\.$', '', prefix)
    plain = {
        name.removeprefix(prefix) if name.startswith(prefix) else name.removeprefix(wrapper): tensor
        for name, tensor in tensors.items()
    }
    if len(plain) != len(tensors):
        raise CheckpointError(f'two tensors get the same name when the prefix {prefix!r} is taken off')
    detected = _detect_format(plain, prefix)
    if format == 'auto':
        format = detected
    if format not in FORMATS:
        raise CheckpointError(f'unknown format {format!r}: use auto, {", ".join(FORMATS)}')
    return plain, format


def _detect_format(names: Mapping[str, Tensor], prefix: str) -> str:
    if prefix.endswith('net.') or any(name.startswith('simfp_') for name in names):
        return 'detectron2'
    if 'token_emb.word_embeddings.weight' in names:
        return 'mage'
    if any(name in names for name in ('tokenizer_norm.weight', 'token_emb.weight', 'pos_mask_embed')):
        return 'addp'
    if 'mask_token' in names or 'decoder_pos_embed' in names or any(name.startswith('decoder.') for name in names):
        return 'mae'
    return 'timm'


def _neck_name(name: str) -> str:
    level, _, rest = name.partition('.')
    layer, _, kind = rest.rpartition('.')
    index = _NECK_INDICES.get(level, {}).get(layer)
    if index is None:
        raise CheckpointError(f"{name} is not a layer of detectron2's simple feature pyramid")
    return f'levels.{int(level[-1]) - 2}.{index}.{kind}'


def _check_trunk(report: ConversionReport, keep_cls: bool) -> None:
    """Lists missing tensors and refuses wrong shapes; width, depth and patch size are those of the tensors."""
    found = report.state_dict
    depth = 1 + max(int(name.split('.')[1]) for name in found if name.startswith('blocks.'))
    width = found['blocks.0.attn.qkv.weight'].shape[-1]
    patch = found['patch_embed.proj.weight'].shape[-1] if 'patch_embed.proj.weight' in found else 16
    shapes: dict[str, tuple[int, ...]] = {
        'patch_embed.proj.weight': (width, 3, patch, patch),
        'patch_embed.proj.bias': (width,),
    }
    if 'tokenizer_norm.weight' in found or 'tokenizer_norm.bias' in found or report.format == 'addp':
        shapes |= {'tokenizer_norm.weight': (width,), 'tokenizer_norm.bias': (width,)}
    if keep_cls:
        shapes['cls_token'] = (1, 1, width)
        if 'norm.weight' in found or 'norm.bias' in found or report.format in ('addp', 'mae', 'mage'):
            shapes |= {'norm.weight': (width,), 'norm.bias': (width,)}
    for i in range(depth):
        for layer, (rows, columns) in {
            'attn.qkv': (3 * width, width),
            'attn.proj': (width, width),
            'mlp.fc1': (4 * width, width),
            'mlp.fc2': (width, 4 * width),
        }.items():
            shapes |= {f'blocks.{i}.{layer}.weight': (rows, columns), f'blocks.{i}.{layer}.bias': (rows,)}
        for layer in ('norm1', 'norm2'):
            shapes |= {f'blocks.{i}.{layer}.weight': (width,), f'blocks.{i}.{layer}.bias': (width,)}
    if 'pos_embed' in found:
        shapes['pos_embed'] = tuple(found['pos_embed'].shape)  # any grid; resized later
    mismatch = match_tensors(found, {name: torch.empty(shape, device='meta') for name, shape in shapes.items()})
    if mismatch.kinds:
        raise CheckpointError(f'weights that cannot be used: {listed([f"{n} {k}" for n, k in mismatch.kinds.items()])}')
    if mismatch.shapes:
        wrong = [f'{name}: got {got}, wanted {wanted}' for name, (got, wanted) in mismatch.shapes.items()]
        raise CheckpointError(f'wrong shapes for a ViT {width} wide: {"; ".join(wrong)}')
    report.missing = mismatch.missing + ['pos_embed'] * ('pos_embed' not in found)


def _resize(report: ConversionReport, img_size: int | None, patch_size: int | None, keep_cls: bool) -> None:
    """Brings patch and position embedding to the backbone's patch size and grid."""
    weight = report.state_dict['patch_embed.proj.weight']
    if patch_size is not None and weight.shape[-1] != patch_size:
        report.notes.append(f'patch_embed.proj.weight: resampled from {weight.shape[-1]} to {patch_size} px patches')
        weight = resample_patch_embed(weight.float(), [patch_size, patch_size]).to(weight.dtype)
        report.state_dict['patch_embed.proj.weight'] = weight
    patch = weight.shape[-1]

    pos_embed = report.state_dict['pos_embed']
    pos_embed = pos_embed.reshape(-1, pos_embed.shape[-1])[None]
    width = report.state_dict['blocks.0.attn.qkv.weight'].shape[-1]
    num_entries = pos_embed.shape[1]
    side = math.isqrt(num_entries)
    num_extra = num_entries - side * side
    if pos_embed.shape[-1] != width or side == 0 or num_extra > 2:
        raise CheckpointError(
            f'pos_embed: got {tuple(report.state_dict["pos_embed"].shape)}, wanted (1, N, {width}) with N a square '
            'number, or one or two more (cls, distillation token)'
        )
    cls, pos_embed = pos_embed[:, :num_extra], pos_embed[:, num_extra:]
    if keep_cls and not num_extra:
        report.notes.append('pos_embed: no entry for cls, so it is 0 (which is what the source adds)')
        cls = torch.zeros_like(pos_embed[:, :1])
    num_dropped = num_extra - keep_cls
    if num_dropped > 0:
        report.notes.append(
            f'pos_embed: {num_dropped} entr{"y" if num_dropped == 1 else "ies"} for cls and the like dropped'
        )
    grid = side if img_size is None else img_size // patch
    if grid != side:
        report.notes.append(f'pos_embed: resized (bicubic) from {side} x {side} to {grid} x {grid}')
    pos_embed = resample_abs_pos_embed(pos_embed, [grid, grid], [side, side], num_prefix_tokens=0, antialias=False)
    report.state_dict['pos_embed'] = torch.cat((cls[:, :1], pos_embed), dim=1) if keep_cls else pos_embed
