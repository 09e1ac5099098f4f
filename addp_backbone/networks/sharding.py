"""What fully sharded data parallelism (``det_configs/_base_/fsdp.py``) cuts a model into."""

from __future__ import annotations

from mmengine.registry import FUNCTIONS
from torch import nn

from addp_backbone.layers.block import Block


@FUNCTIONS.register_module()
def shard_vit_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy``: every transformer block is a shard of its own, all else stays with the root.

    Heads must not be shards: mmdet and mmseg call their ``loss`` and ``predict``, and FSDP gathers weights in
    ``forward`` alone.

    Args:
        module: The module in question.
        recurse: Whether FSDP asks if it shall look at the module's children (always), not at itself.
        nonwrapped_numel: Unused; part of FSDP's protocol.

    Returns:
        Whether to look at the children, or whether to wrap.
    """
    return recurse or isinstance(module, Block)
