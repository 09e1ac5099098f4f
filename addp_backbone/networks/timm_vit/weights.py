"""Weights for :class:`TimmViT`: files as people have them, and timm's published ones; every tensor accounted for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from mmengine.logging import print_log
from timm.models._registry import get_pretrained_cfg
from torch import Tensor

from addp_backbone.checkpoint.errors import refuse_partial
from addp_backbone.checkpoint.matching import MAX_NAMES, listed, match_tensors
from addp_backbone.checkpoint.storage import CheckpointError, read_checkpoint
from addp_backbone.networks.timm_vit.catalogue import build_model, size_options
from addp_backbone.networks.timm_vit.layouts import DROPPED, OTHER_MODEL, Layout, find_vits, to_timm_names
from addp_backbone.tuning.lora import LORA_ENDINGS

if TYPE_CHECKING:
    from addp_backbone.networks.timm_vit.backbone import TimmViT

# Whose own code resizes absolute positions without antialiasing; timm's default, as OpenCLIP's, is with.
_WITHOUT_ANTIALIASING = re.compile(r'dinov2(?!.*reg)|^deit|^eva|mae')
_BEHIND = 'block behind the last output map (out_indices), which is not built'


@dataclass
class WeightsReport:
    """What became of a file's tensors.

    Attributes:
        layout: How they are named.
        prefix: What stands in front of the ViT's names.
        loaded: Names of the model's tensors that came from the file.
        dropped: Name in the file -> reason.
        notes: What had to be assumed or changed, for the log.
    """

    layout: str
    prefix: str
    loaded: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_file(backbone: TimmViT, path: str | Path, prefix: str | None = None) -> WeightsReport:
    """Loads a checkpoint of any known layout strictly, and logs the report.

    Args:
        backbone: Receives the weights.
        path: ``.safetensors``, ``.pth`` ...; read without executing anything.
        prefix: Which of several networks in the file: what stands in front of its names (``'teacher.backbone.'``); None
            = the only ViT in it.

    Returns:
        What was loaded, dropped and assumed.

    Raises:
        CheckpointError: If the file is missing or unreadable, holds no ViT or several, a tensor is missing, of another
            shape, or not accounted for. Nothing is loaded then.
    """
    try:
        report, tensors = convert(backbone, read_checkpoint(path), prefix)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}' if str(path) not in str(error) else str(error)) from error
    own = backbone.vit.state_dict()
    with torch.no_grad():
        for name in report.loaded:
            own[name].copy_(tensors[name])
    reasons = sorted(set(report.dropped.values()))
    print_log(
        f'TimmViT {backbone.model_name}: {len(report.loaded)} tensors of {path} ({report.layout} names'
        + (f' behind {report.prefix!r}' if report.prefix else '')
        + f'), {len(report.dropped)} left out ({"; ".join(reasons) or "none"})'
        + ''.join(f'\n  {note}' for note in report.notes),
        logger='current',
    )
    return report


def convert(
    backbone: TimmViT, checkpoint: Mapping[str, Any], prefix: str | None = None
) -> tuple[WeightsReport, dict[str, Tensor]]:
    """Brings a checkpoint's tensors under the names of ``backbone.vit`` and accounts for every one.

    Args:
        backbone: Says which model, which image size and which blocks.
        checkpoint: A file's contents, nested as it may be.
        prefix: As in :func:`load_file`.

    Returns:
        The report, and tensors by timm's names.

    Raises:
        CheckpointError: As in :func:`load_file`.
    """
    refuse_partial(checkpoint, 'the file')
    flat = _flatten(checkpoint)
    prefix, layout = _choose(flat, prefix)
    report = WeightsReport(layout.name, prefix)
    inside = {name[len(prefix) :]: value for name, value in flat.items() if name.startswith(prefix)}
    report.dropped |= {name: 'outside of the ViT' for name in flat if not name.startswith(prefix)}
    for name in list(inside):
        reason = next((why for pattern, why in DROPPED.items() if re.match(pattern, name)), None)
        if reason and not (layout.timm_prefix and name == 'proj'):
            report.dropped[prefix + name] = reason
            if name != 'mask_token' and name != 'head.weight':  # timm's converters look for some of them
                del inside[name]
    model, like = backbone.model_name, _as_published(backbone)
    antialias = not _WITHOUT_ANTIALIASING.search(model)
    converted = to_timm_names(dict(inside), layout, model, like, antialias)
    for name in _vanished(inside, converted):
        report.dropped.setdefault(prefix + name, "left out by timm's converter")
    _account(backbone, like, converted, report, prefix)
    _note_assumptions(backbone, like, inside, converted, report, antialias)
    return report, converted


def position_grid(model: str, init_cfg: Mapping[str, Any] | None) -> int | None:
    """Side of the grid that a file's absolute positions are made for, in tokens, if it is not the model's own.

    A model takes the file's grid rather than resizing its positions twice. What cannot be read or told gives None; that
    is reported when the weights are loaded.

    Args:
        model: timm's name.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` or None.
    """
    if init_cfg is None or init_cfg.get('type') != 'Pretrained' or not Path(init_cfg['checkpoint']).is_file():
        return None
    with torch.device('meta'):
        like = build_model(model)
    own = getattr(like, 'pos_embed', None)
    if own is None or own.ndim != 3 or not getattr(like, 'dynamic_img_size', False):
        return None
    try:
        flat = _flatten(read_checkpoint(init_cfg['checkpoint']))
        prefix, _ = _choose(flat, init_cfg.get('prefix'))
    except CheckpointError:
        return None
    names = (
        'pos_embed',
        'embeddings.position_embeddings',
        'embeddings.position_embedding.weight',
        'positional_embedding',
    )
    given = next((flat[prefix + name] for name in names if prefix + name in flat), None)
    if given is None or given.ndim < 2:
        return None
    length = given.shape[-2]
    for num_prefix in dict.fromkeys((0 if like.no_embed_class else like.num_prefix_tokens, 1, 0)):
        side = math.isqrt(max(0, length - num_prefix))
        if side and side * side == length - num_prefix:
            return side if (side, side) != tuple(like.patch_embed.grid_size) else None
    return None


def load_published_weights(backbone: TimmViT) -> None:
    """Loads the weights that timm publishes under the model's name, from the Hugging Face hub or its cache.

    Raises:
        CheckpointError: If there are none, or the hub cannot be reached and the cache lacks them; says which file to
            fetch and what to do with it.
    """
    name = backbone.model_name
    cfg = get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None or not cfg.has_weights:
        raise CheckpointError(
            f'timm publishes no weights for {name}: give a file, init_cfg=dict(type="Pretrained", checkpoint=FILE)'
        )
    options = _size_options(backbone)
    try:
        source = timm.create_model(name, pretrained=True, num_classes=0, **options)
    except Exception as error:  # the hub's client raises many kinds
        where = f'https://huggingface.co/{cfg.hf_hub_id}' if cfg.hf_hub_id else cfg.url
        raise CheckpointError(
            f'the published weights of {name} could not be fetched ({type(error).__name__}: {_first_line(error)}). '
            f'Without a network: fetch model.safetensors from {where} on another machine and set pretrained=False, '
            f'init_cfg=dict(type="Pretrained", checkpoint=FILE); or copy the hub\'s cache and set HF_HUB_OFFLINE=1'
        ) from error
    wanted = {key: tensor for key, tensor in backbone.vit.state_dict().items() if not key.endswith(LORA_ENDINGS)}
    given = source.state_dict()
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(given[key])
    print_log(f'TimmViT {name}: {len(wanted)} tensors as published by timm', logger='current')


def _as_published(backbone: TimmViT) -> Any:
    """The whole model as timm builds it, on the meta device."""
    with torch.device('meta'):
        return timm.create_model(backbone.model_name, pretrained=False, num_classes=0, **_size_options(backbone))


def _size_options(backbone: TimmViT) -> dict[str, Any]:
    return {**size_options(backbone.model_name, None), 'img_size': backbone.vit.patch_embed.img_size}


def _flatten(node: Mapping[str, Any], prefix: str = '') -> dict[str, Tensor]:
    """All tensors of nested dicts, by their path; training state beside them has none or is told by its names."""
    flat: dict[str, Tensor] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            if key not in (
                'optimizer',
                'optimizer_states',
                'scaler',
                'lr_schedulers',
                'message_hub',
                'param_schedulers',
            ):
                flat |= _flatten(value, f'{prefix}{key}.')
        elif isinstance(value, Tensor):
            flat[f'{prefix}{key}'] = value
        elif isinstance(value, np.ndarray):
            flat[f'{prefix}{key}'] = torch.as_tensor(value)
    return flat


def _choose(flat: Mapping[str, Tensor], prefix: str | None) -> tuple[str, Layout]:
    """The ViT that is meant."""
    found = find_vits(flat)
    if prefix is not None:
        wanted = prefix.rstrip('.') + '.' if prefix else ''
        chosen = [(given, layout) for given, layout in found if given == wanted or given.endswith(f'.{wanted}')]
        if not chosen:  # names inside may have a further wrapper
            chosen = [(given, layout) for given, layout in found if wanted and wanted in f'.{given}']
    else:
        chosen = found
    prefixes = sorted({given for given, _ in chosen})
    if not prefixes:
        words = sorted({name.partition('.')[0] for name in flat})[:MAX_NAMES]
        asked = f' behind prefix {prefix!r}' if prefix is not None else ''
        known = f'; there are ViTs behind {sorted({given for given, _ in found})}' if found else ''
        raise CheckpointError(
            f'no ViT of a known layout{asked} was found among {len(flat)} tensors (names begin with {words}){known}'
        )
    if len(prefixes) > 1:
        raise CheckpointError(f'the file holds {len(prefixes)} ViTs: set init_cfg.prefix to one of {prefixes}')
    return chosen[0]


def _vanished(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names whose values are not among the converted ones: neither kept nor resized, joined or split.

    Raises:
        CheckpointError: If there are such tensors of a block, which no layout has for nothing.
    """
    kept = {value.data_ptr() for value in after.values()}
    changed = re.compile(
        r'patch|pos|class|cls|conv1|bias_table|\b[qkv]_proj|\bw[qkv]\b|attention|attn\.|query|key|value|mlp'
    )
    gone = [name for name, value in before.items() if value.data_ptr() not in kept and not changed.search(name)]
    blocks = [name for name in gone if re.search(r'(blocks|layers?)\.\d+\.', name)]
    if blocks:
        raise CheckpointError(f'tensors that the conversion has no place for: {listed(blocks)}')
    return gone


def _account(backbone: TimmViT, like: Any, converted: dict[str, Tensor], report: WeightsReport, prefix: str) -> None:
    """Compares with the model's tensors; raises with the lists of what is missing, unknown or of another shape."""
    own, published = backbone.vit.state_dict(), like.state_dict()
    kept: dict[str, Tensor] = {}
    for name, value in converted.items():
        if name not in own and name in published:
            reason = _BEHIND if name.startswith('blocks.') else 'norm, pooling or head'
            report.dropped.setdefault(prefix + name, reason)
        elif name in own or not any(re.match(pattern, name) for pattern in DROPPED):
            kept[name] = value
    mismatch = match_tensors(kept, own, [name for name in own if name.endswith(LORA_ENDINGS)])
    if mismatch:
        shapes = [f'{name} {found} instead of {wanted}' for name, (found, wanted) in mismatch.shapes.items()]
        kinds = [f'{name} {kind}' for name, kind in mismatch.kinds.items()]
        raise CheckpointError(
            f'the file does not fit {backbone.model_name}. Missing: {listed(mismatch.missing)}. Without a place in the '
            f'model: {listed(mismatch.unexpected)}. Of another shape: {listed([*shapes, *kinds])}. {OTHER_MODEL}'
        )
    report.loaded = list(kept)


def _note_assumptions(
    backbone: TimmViT,
    like: Any,
    inside: Mapping[str, Tensor],
    converted: Mapping[str, Tensor],
    report: WeightsReport,
    antialias: bool,
) -> None:
    """What the names cannot tell, and what was resized."""
    activations = {
        type(module).__name__
        for block in like.blocks
        for module in block.modules()
        if module.__class__.__module__.startswith(('torch.nn.modules.activation', 'timm.layers.activations'))
    }
    report.notes.append(
        f'{backbone.arch.num_heads} heads'
        + ''.join(f', activation {name}' for name in sorted(activations))
        + ', as timm has it for this name: no tensor tells'
    )
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in inside.values()):
        report.notes.append('half-precision tensors of the file became float32')
    as_in_file = {value.data_ptr() for value in inside.values()}
    resized = [
        name
        for name, value in converted.items()
        if name.endswith('relative_position_bias_table') and value.data_ptr() not in as_in_file
    ]
    if resized:
        report.notes.append(
            f'{len(resized)} tables of relative positions resized for img_size {backbone.vit.patch_embed.img_size}'
        )
    pos_embed, own = inside.get('pos_embed'), backbone.vit.state_dict().get('pos_embed')
    if (
        pos_embed is not None
        and own is not None
        and pos_embed.ndim == 3
        and abs(pos_embed.shape[1] - own.shape[1]) > 1 + backbone.vit.num_prefix_tokens
    ):
        report.notes.append(
            f'absolute positions resized from {pos_embed.shape[1]} to {own.shape[1]} entries, bicubic, '
            f'{"with" if antialias else "without"} antialiasing'
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [''])[0][:200]
