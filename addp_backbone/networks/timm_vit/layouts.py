"""Whose names a checkpoint's tensors have, and how they become timm's.

timm's own converters do the work where timm has one (Meta's DINOv2, DINOv3, SAM, Perception Encoder, OpenCLIP, AIMv2,
RADIO, BEiT-3); transformers' names are mapped here, those of the published files as well as those of transformers 5.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.transformers_names import to_timm_name
from addp_backbone.networks.timm_vit.catalogue import family_of


@dataclass(frozen=True)
class Layout:
    """A way to name a ViT's tensors.

    Attributes:
        name: For people.
        anchor: The name of the patch embedding's weight, without prefix.
        companion: A name that has to be there too, as anchors are shared.
        timm_prefix: What timm's converter expects in front of the names; None where the mapping is ours.
    """

    name: str
    anchor: str
    companion: str
    timm_prefix: str | None = ''


# What timm's converters raise for tensors of other shapes and names than they expect.
_CONVERTER_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)

LAYOUTS = (
    Layout('timm or Meta', 'patch_embed.proj.weight', 'blocks.0.'),
    Layout('Sapiens', 'patch_embed.projection.weight', 'blocks.0.'),
    Layout('OpenCLIP or Perception Encoder', 'conv1.weight', 'transformer.resblocks.0.', 'visual.'),
    Layout('AIMv2', 'preprocessor.patchifier.proj.weight', 'trunk.blocks.0.'),
    Layout('RADIO', 'patch_generator.embedder.weight', 'blocks.0.', 'radio_model.model.'),
    Layout('BEiT-3', 'vision_embed.proj.weight', 'encoder.layers.0.', 'beit3.'),
    Layout('transformers', 'embeddings.patch_embeddings.projection.weight', 'layer', None),
    Layout('transformers', 'embeddings.patch_embeddings.weight', 'layer', None),
    Layout('transformers', 'embeddings.patch_embedding.weight', 'layer', None),
    Layout('transformers SAM', 'patch_embed.projection.weight', 'layers.0.', None),
)

OTHER_MODEL = 'Give the timm name of the model that the file is of (python tools/list_backbones.py lists them)'

# Tensors that a backbone has no use for: pattern at the beginning of a name -> reason.
DROPPED = {
    r'mask_token|embeddings\.mask_token': 'stands for masked patches in pre-training',
    r'decoder|predictor|lm_head|projectors?\.|bottleneck|loss': 'of a pre-training objective',
    r'(norm|fc_norm|layernorm|post_layernorm|ln_post|ln1|post_trunk_norm)\.': 'norm behind the blocks',
    r'(head|head_dist|attn_pool|pooler|classifier|pre_logits|neck)\.|proj$': 'pooling, projection or head',
    r'local_cls_norm': "of DINOv3's local crops",
    r'.*(relative_position_index|rope.*\.(periods|inv_freq)|rope_embeddings.*|bias_mask|position_ids)$': 'a constant',
    r'(summary_idxs|input_conditioner\.|radio_model\.input_conditioner)': 'of preprocessing',
}


def find_vits(names: Mapping[str, object]) -> list[tuple[str, Layout]]:
    """All ViTs in a flat state dict: (prefix of its tensors, layout)."""
    found = []
    for layout in LAYOUTS:
        for name in names:
            if name == layout.anchor or name.endswith('.' + layout.anchor):
                prefix = name[: len(name) - len(layout.anchor)]
                if any(other.startswith(prefix) and layout.companion in other[len(prefix) :] for other in names):
                    found.append((prefix, layout))
    return found


def to_timm_names(
    tensors: dict[str, Tensor], layout: Layout, model: str, like: Any, antialias: bool
) -> dict[str, Tensor]:
    """Renames, joins and splits tensors until they have timm's names; resizes positions to the model's own grid.

    Args:
        tensors: Of one ViT, without prefix.
        layout: How they are named.
        model: timm's name of the model.
        like: That model as timm builds it; may lie on the meta device.
        antialias: Whether positions are resized with antialiasing.

    Returns:
        Tensors by timm's names; those that neither timm nor we know keep theirs.

    Raises:
        CheckpointError: If the file has tokens, positions or biases that the model has not, or patches of another size.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in like.state_dict().items()}
    if layout.timm_prefix is None:
        tensors = _from_transformers(tensors, wanted)
    if 'register_tokens' in tensors:  # Meta's name; timm's converter knows it only beside a mask_token
        tensors = {'reg_token' if name == 'register_tokens' else name: value for name, value in tensors.items()}
    if _must_fold_class_position(tensors, wanted):
        tensors = _fold_class_position(tensors)
    _refuse_another_stem(tensors, layout, model, like)
    module = importlib.import_module(f'timm.models.{family_of(model)}')
    convert = getattr(module, 'checkpoint_filter_fn', None)
    if convert is None:  # deit takes vision_transformer's
        convert = importlib.import_module('timm.models.vision_transformer').checkpoint_filter_fn
    prefix = layout.timm_prefix or ''
    if layout.companion == 'blocks.0.' and family_of(model) == 'vision_transformer_sam' and 'neck.0.weight' in tensors:
        prefix = 'image_encoder.' if any('.mlp.lin1.' in name for name in tensors) else ''
    options = dict(antialias=antialias) if 'antialias' in convert.__code__.co_varnames else {}
    with contextlib.redirect_stdout(io.StringIO()):  # timm prints what it tries
        given = {prefix + name: value for name, value in tensors.items()}
        try:
            converted: dict[str, Tensor] = convert(given, like, **options)
        except _CONVERTER_ERRORS as error:
            raise CheckpointError(
                f"timm's converter cannot make {model} of this file ({type(error).__name__}: {error}). {OTHER_MODEL}"
            ) from error
    return {_like_target(name.removeprefix(prefix), wanted): value for name, value in converted.items()}


def _from_transformers(tensors: dict[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Transformers' names -> timm's; queries, keys and values joined where timm joins them."""
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        name = to_timm_name(name)
        if name in ('cls_token', 'reg_token', 'pos_embed') and value.ndim < 3:
            value = value.reshape(1, -1, value.shape[-1])
        renamed[name] = value
    if 'reg_token' in renamed and not renamed['reg_token'].numel():
        del renamed['reg_token']
    blocks = {name.rpartition('.attn.q.')[0] for name in renamed if '.attn.q.weight' in name}
    for block in sorted(blocks):
        _join_attention(renamed, block, wanted)
    for name in [name for name in renamed if '.mlp.up_proj.' in name]:
        _name_gated_mlp(renamed, name, wanted)
    return renamed


def _join_attention(tensors: dict[str, Tensor], block: str, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Replaces ``attn.q``, ``attn.k`` and ``attn.v`` of a block by what timm's block has; in place."""
    weights = [tensors.pop(f'{block}.attn.{part}.weight') for part in 'qkv']
    biases = [tensors.pop(f'{block}.attn.{part}.bias', None) for part in 'qkv']
    if f'{block}.attn.q_proj.weight' in wanted:
        for part, weight, bias in zip('qkv', weights, biases, strict=True):
            tensors[f'{block}.attn.{part}_proj.weight'] = weight
            if bias is not None:
                tensors[f'{block}.attn.{part}_proj.bias'] = bias
        return
    tensors[f'{block}.attn.qkv.weight'] = torch.cat(weights)
    if all(bias is None for bias in biases):
        return
    q_bias, k_bias, v_bias = (
        torch.zeros_like(weight[:, 0]) if bias is None else bias for weight, bias in zip(weights, biases, strict=True)
    )
    if f'{block}.attn.q_bias' not in wanted and f'{block}.attn.qkv.bias' not in wanted:
        if not any(bias.any() for bias in (q_bias, k_bias, v_bias)):
            return  # zeros: as good as none (DINOv3's distilled models)
        raise CheckpointError(
            f'{block}: the file has biases of queries and values that are not zero, and this model has none; timm '
            'has a variant with them (its name ends in _qkvb)'
        )
    if f'{block}.attn.q_bias' in wanted:
        if k_bias.any():
            raise CheckpointError(f'{block}: the file has a bias of the keys, which this model has no place for')
        tensors[f'{block}.attn.q_bias'], tensors[f'{block}.attn.v_bias'] = q_bias, v_bias
    else:
        tensors[f'{block}.attn.qkv.bias'] = torch.cat((q_bias, k_bias, v_bias))


def _name_gated_mlp(tensors: dict[str, Tensor], up_name: str, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """``gate_proj`` and ``up_proj``: one packed layer, two layers, or without a gate plainly the first; in place."""
    up = tensors.pop(up_name)
    gate = tensors.pop(up_name.replace('up_proj', 'gate_proj'), None)
    if gate is None:
        tensors[up_name.replace('up_proj', 'fc1')] = up
    elif up_name.replace('up_proj', 'fc1_g') in wanted:
        tensors[up_name.replace('up_proj', 'fc1_g')] = gate
        tensors[up_name.replace('up_proj', 'fc1_x')] = up
    else:
        tensors[up_name.replace('up_proj', 'fc1')] = torch.cat((gate, up))


def _must_fold_class_position(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the file's class token has a position and the model's has none (DINOv2 with registers)."""
    if not {'pos_embed', 'cls_token', 'reg_token'} <= tensors.keys() & wanted.keys():
        return False
    side = round((tensors['pos_embed'].shape[1] - 1) ** 0.5)
    grid = wanted['pos_embed'][1]
    return side * side == tensors['pos_embed'].shape[1] - 1 and round(grid**0.5) ** 2 == grid


def _refuse_another_stem(tensors: Mapping[str, Tensor], layout: Layout, model: str, like: Any) -> None:
    """Refuses what timm's converters resample to the model's sizes, or fail at: the file is of another model."""
    wanted = like.state_dict()
    for name in ('cls_token', 'reg_token', 'dist_token'):
        if name in tensors and name not in wanted:
            raise CheckpointError(f'the file has {name}, which {model} has not. {OTHER_MODEL}')
    patches = tensors.get('patch_embed.proj.weight', tensors.get(layout.anchor))
    side = like.patch_embed.patch_size[0]
    if patches is not None and patches.ndim == 4 and patches.shape[-1] != side:
        raise CheckpointError(
            f"the file's patches have a side of {patches.shape[-1]} px, those of {model} {side} px. {OTHER_MODEL}"
        )
    given, own = tensors.get('pos_embed'), wanted.get('pos_embed')
    if given is None or own is None or given.ndim != 3 or own.ndim != 3:
        return
    num_prefix = own.shape[1] - like.patch_embed.num_patches
    num_patches = given.shape[1] - num_prefix
    if given.shape[1] != own.shape[1] and (num_patches < 1 or math.isqrt(num_patches) ** 2 != num_patches):
        raise CheckpointError(
            f"the file has {given.shape[1]} absolute positions; {model} wants a square number of the patches' and "
            f'{num_prefix} of class, distillation and register tokens. {OTHER_MODEL}'
        )


def _fold_class_position(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    pos_embed = tensors['pos_embed']
    return {**tensors, 'cls_token': tensors['cls_token'] + pos_embed[:, :1], 'pos_embed': pos_embed[:, 1:]}


def _like_target(name: str, wanted: Mapping[str, tuple[int, ...]]) -> str:
    """LayerScale has two spellings in timm; the model's own counts."""
    if name in wanted:
        return name
    for pattern, replacement in ((r'\.ls([12])\.gamma$', r'.gamma_\1'), (r'\.gamma_([12])$', r'.ls\1.gamma')):
        other = re.sub(pattern, replacement, name)
        if other in wanted:
            return other
    return name
