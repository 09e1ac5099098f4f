"""From the names of transformers' ViTs to timm's, for both backbones."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from addp_backbone.checkpoint.errors import CheckpointError

RULES = [  # transformers -> timm, applied in this order
    (r'^(?:encoder\.|model\.)?layers?\.(\d+)\.', r'blocks.\1.'),
    (r'^embeddings\.(?:cls_token|class_embedding)$', 'cls_token'),
    (r'^embeddings\.register_tokens$', 'reg_token'),
    (r'^embeddings\.position_embeddings?(?:\.weight)?$', 'pos_embed'),
    (r'^(?:embeddings\.patch_embeddings?(?:\.projection)?|patch_embed\.projection)\.', 'patch_embed.proj.'),
    (r'^pre_layrnorm\.', 'norm_pre.'),
    (r'\.(?:layernorm_before|layer_norm1)\.', '.norm1.'),
    (r'\.(?:layernorm_after|layer_norm2)\.', '.norm2.'),
    (r'^(blocks\.\d+)\.relative_position_bias\.', r'\1.attn.'),
    (r'\.attention\.attention\.(?:relative_position_bias\.)?', '.attn.'),
    (r'\.attention\.output\.dense\.', '.attn.proj.'),
    (r'\.(?:attention|self_attn)\.(?:relative_position_bias\.)?', '.attn.'),
    (r'\.attn\.(?:o_proj|out_proj)\.', '.attn.proj.'),
    (r'\.attn\.(?:query|q_proj)\.', '.attn.q.'),
    (r'\.attn\.(?:key|k_proj)\.', '.attn.k.'),
    (r'\.attn\.(?:value|v_proj)\.', '.attn.v.'),
    (r'\.intermediate\.dense\.', '.mlp.fc1.'),
    (r'^(blocks\.\d+)\.output\.dense\.', r'\1.mlp.fc2.'),
    (r'\.mlp\.lin([12])\.', r'.mlp.fc\1.'),
    (r'\.mlp\.weights_in\.', '.mlp.fc1.'),
    (r'\.mlp\.(?:weights_out|down_proj)\.', '.mlp.fc2.'),
    (r'\.layer_scale([12])\.lambda1$', r'.ls\1.gamma'),
    (r'\.lambda_([12])$', r'.gamma_\1'),
]
ANCHOR = 'embeddings.patch_embeddings.projection.weight'  # ViT, DeiT, MAE, DINOv2, I-JEPA, BEiT
_PLAIN = [  # what ADDPViT's conversion drops by timm's names; TimmViT has its own list
    (r'^embeddings\.distillation_token$', 'dist_token'),
    (r'^embeddings\.mask_token$', 'mask_token'),
    (r'^layernorm\.', 'norm.'),
]
_OTHER_ANCHORS = {  # names of families that ADDPViT does not compute
    'embeddings.patch_embedding.weight': 'CLIP or SigLIP',
    'embeddings.patch_embeddings.weight': 'DINOv3',
    'vision_encoder.patch_embed.projection.weight': 'SAM',
}


def to_timm_name(name: str, rules: list[tuple[str, str]] = RULES) -> str:
    """A tensor's name after all rules."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def other_family(names: Mapping[str, object]) -> str | None:
    """The family of transformers whose names these are and that a plain ViT does not compute; None if none."""
    for anchor, family in _OTHER_ANCHORS.items():
        if any(name == anchor or name.endswith('.' + anchor) for name in names):
            return family
    return None


def to_plain_vit(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Renames the tensors of transformers' plain ViTs and joins queries, keys and values.

    Args:
        tensors: A state dict with :data:`ANCHOR`.
        prefix: What stands in front of the ViT's names; other tensors keep theirs.

    Returns:
        Tensors by timm's names.

    Raises:
        CheckpointError: If the MLPs are gated, or a query, key or value is missing.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if '.mlp.weights_in.' in name or '.mlp.gate_proj.' in name:
            raise CheckpointError(f'{name}: the checkpoint has gated MLPs, which ADDPViT does not compute')
        own = name.startswith(prefix)
        plain[to_timm_name(name.removeprefix(prefix), [*RULES, *_PLAIN]) if own else name] = tensor
    if 'cls_token' in plain:
        plain['cls_token'] = plain['cls_token'].reshape(1, 1, -1)
    for block in [name.removesuffix('.q.weight') for name in plain if name.endswith('.attn.q.weight')]:
        for kind in ('weight', 'bias'):
            parts = [plain.pop(f'{block}.{part}.{kind}', None) for part in 'qkv']
            if kind == 'weight' and any(part is None for part in parts):
                raise CheckpointError(f'{block}: the file lacks the weight of queries, keys or values')
            known = [part for part in parts if part is not None]
            if known:
                filled = [torch.zeros_like(known[0]) if part is None else part for part in parts]
                plain[f'{block}.qkv.{kind}'] = torch.cat(filled)
    return plain
