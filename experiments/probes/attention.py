"""What the class token of a ViT attends to in its last block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from experiments.probes.features import Extraction


class _LastAttention(TorchFunctionMode):
    """Keeps the arguments of the last call of torch's attention.

    Queries and keys are there as attention sees them: behind any norms, rotary embeddings and biases of a family.
    """

    def __init__(self) -> None:
        super().__init__()
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.options: dict[str, Any] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.query, self.key = args[:2]
            self.options = dict(kwargs or {})
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def class_attention(backbone: nn.Module, images: Tensor) -> NDArray[np.float32] | None:
    """How much the class token attends to each patch in the last block, mean over heads.

    Args:
        backbone: A :class:`TimmViT` with a class token that returns the map of its last block, in evaluation.
        images: (B, 3, H, W), normalised.

    Returns:
        (B, h, w), of each image the sum is at most 1 (the rest is for prefix tokens); None if the backbone computes
        attention by other means than torch's.
    """
    with _LastAttention() as last:
        maps = backbone(images)
    if last.query is None or last.key is None:
        return None
    scale = last.options.get('scale') or last.query.shape[-1] ** -0.5
    logits = scale * last.query[:, :, :1].float() @ last.key.float().transpose(-2, -1)  # (B, heads, 1, tokens)
    bias = last.options.get('attn_mask')
    if bias is not None:
        logits = logits + bias[..., :1, :].float()
    attention = logits.softmax(dim=-1).mean(dim=1)[:, 0]
    rows, columns = maps[-1].shape[-2:]
    patches = attention[:, attention.shape[1] - rows * columns :]  # prefix tokens stand in front
    return patches.reshape(-1, rows, columns).cpu().numpy()


def attention_maps(extraction: Extraction, images: Sequence[Path]) -> NDArray[np.float32] | None:
    """:func:`class_attention` of image files.

    Args:
        extraction: Of the last block.
        images: The files.
    """
    backbone = extraction.make_backbone(extraction.blocks).to(extraction.device)
    return class_attention(backbone, extraction.read(images))
