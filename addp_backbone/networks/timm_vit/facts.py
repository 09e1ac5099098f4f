"""What is known of a plain ViT of timm without running it: sizes, features, arithmetic, memory. And whether it runs.

Nothing is allocated for the facts; arithmetic and memory are formulas over the layers, not measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from addp_backbone.networks.timm_vit.backbone import TimmViT
from addp_backbone.networks.timm_vit.catalogue import (
    FIXED_SIZE_FAMILIES,
    arch_of,
    build_model,
    data_config,
    family_of,
    published_arch,
)

TOLERANCE = 1e-5  # of our maps to timm's, relative to the largest value
CHECKED_GRIDS = ((6, 6), (5, 8))  # in tokens: a square one and another


@dataclass(frozen=True)
class Facts:
    """A row of the list.

    Attributes:
        name: timm's name.
        family: timm's module.
        width: Channels of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        patch_size: Side of a patch, in pixels.
        img_size: Side of the pre-training images, in pixels.
        num_prefix: Class, distillation and register tokens.
        features: What sets it apart: 'rotary', 'LayerScale', 'gated MLP' ...
        num_params: Parameters of what is built: everything up to the last block.
    """

    name: str
    family: str
    width: int
    depth: int
    num_heads: int
    patch_size: int
    img_size: int
    num_prefix: int
    features: tuple[str, ...]
    num_params: int

    def num_tokens(self, image_px: int) -> int:
        """Patches of a square image, the last ones cut off where the side is no multiple."""
        return (image_px // self.patch_size) ** 2

    def giga_flops(self, image_px: int) -> float:
        """Arithmetic of a forward pass with global attention, in GFLOP (a multiplication and an addition are two).

        Weights count twice per token; attention 4 N^2 C a block. Norms, biases and activations are left out.

        Args:
            image_px: Side of the square image.
        """
        tokens = self.num_tokens(image_px) + self.num_prefix
        return (2 * self.num_params * tokens + 4 * self.depth * tokens**2 * self.width) / 1e9

    def training_gib(self, image_px: int) -> float:
        """Estimated float32 activations that one image's backward pass needs, in GiB, with fused attention.

        16 C numbers a token and block: inputs and outputs of norms (4), q, k, v (3), the output of attention (1), the
        MLP's hidden layer before and after its activation (8). Models with a gated MLP need about a quarter more, those
        with relative biases h N^2 numbers a block besides, which fused attention does not save.
        """
        tokens = self.num_tokens(image_px) + self.num_prefix
        numbers = 16 * self.width * tokens * self.depth
        if 'relative bias' in self.features:
            numbers += self.num_heads * tokens**2 * self.depth
        return 4 * numbers / 2**30


def collect(name: str) -> Facts:
    """Looks a model up; raises ValueError for names that :class:`TimmViT` does not take."""
    with torch.device('meta'):
        model: Any = build_model(name)
    arch = arch_of(model)
    num_params = sum(param.numel() for child in (model.patch_embed, model.blocks) for param in child.parameters())
    return Facts(
        name,
        family_of(name),
        arch.width,
        arch.depth,
        arch.num_heads,
        model.patch_embed.patch_size[0],
        data_config(name).img_size,
        getattr(model, 'num_prefix_tokens', 0),
        tuple(_features(model)),
        num_params,
    )


def _features(model: Any) -> list[str]:
    block = model.blocks[0]
    names = {name for name, _ in block.named_modules()} | {name for name, _ in block.named_parameters()}
    attention = getattr(block, 'attn', block)
    has_rel_pos = getattr(attention, 'relative_position_bias_table', None) is not None or hasattr(attention, 'rel_pos')
    has_rel_pos |= getattr(attention, 'use_rel_pos', False)
    num_prefix = getattr(model, 'num_prefix_tokens', 0)
    has_class = getattr(model, 'cls_token', None) is not None
    candidates = {
        'no class token': not has_class,
        f'{num_prefix - has_class} registers': num_prefix - has_class > 0
        and getattr(model, 'reg_token', None) is not None,
        'distillation token': hasattr(model, 'dist_token'),
        'rotary': getattr(model, 'rope', None) is not None,
        'no absolute positions': getattr(model, 'pos_embed', None) is None,
        'relative bias': has_rel_pos,
        'own windows': getattr(block, 'window_size', 0) > 0,
        'LayerScale': any(name.endswith(('ls1.gamma', 'gamma_1')) for name in names),
        'norm before blocks': not isinstance(getattr(model, 'norm_pre', nn.Identity()), nn.Identity),
        'query-key norm': not isinstance(getattr(attention, 'q_norm', nn.Identity()), nn.Identity),
        'gated MLP': any(name.endswith(('fc1_g', 'fc1_g.weight')) for name in names)
        or 'SwiGLU' in type(getattr(block, 'mlp', None)).__name__
        or 'Glu' in type(getattr(block, 'mlp', None)).__name__,
        'parallel blocks': 'Parallel' in type(block).__name__,
        'norm after branches': type(block).__name__ in ('ResPostBlock', 'ResPostRelPosBlock', 'EvaBlockPostNorm'),
        'differential attention': 'Diff' in type(attention).__name__,
    }
    return [name for name, present in candidates.items() if present]


@torch.no_grad()
def check(name: str, num_blocks: int = 2) -> float:
    """Builds a model's first blocks twice, by timm and as a :class:`TimmViT`, and compares their maps.

    Random weights, none of them at a constant; two sizes, one of them not square.

    Args:
        name: timm's name.
        num_blocks: How many blocks are built.

    Returns:
        The largest difference, relative to the largest value.
    """
    num_blocks = min(num_blocks, published_arch(name).depth)
    with torch.device('meta'):
        published: Any = build_model(name)
    patch = published.patch_embed.patch_size[0]
    fixed = family_of(name) in FIXED_SIZE_FAMILIES
    errors, weights = [], dict[str, torch.Tensor]()
    for grid in CHECKED_GRIDS:
        size = (grid[0] * patch, grid[1] * patch)
        with _NoRandomStart():
            ours = TimmViT(name, img_size=size, out_indices=tuple(range(num_blocks))).eval()
            theirs: Any = build_model(name, size if fixed else None, num_blocks=num_blocks).eval()
        _randomise(ours.vit, weights)
        theirs.load_state_dict(ours.vit.state_dict(), strict=False, assign=True)  # ours lacks what is behind the blocks
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
        wanted = theirs.forward_intermediates(images, indices=list(range(num_blocks)), intermediates_only=True)
        errors += [
            float((one - other).abs().max() / other.abs().max())
            for one, other in zip(ours(images), wanted, strict=True)
        ]
    return max(errors)


class _NoRandomStart(TorchFunctionMode):
    """Leaves parameters as allocated: :func:`check` replaces them, and most of a large model's time is there."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get('tensor')
        name = getattr(func, '__name__', '')
        if isinstance(target, nn.Parameter) and name.endswith('_') and not name.endswith('__'):  # in place
            return target
        return func(*args, **kwargs)


def _randomise(module: nn.Module, drawn: dict[str, torch.Tensor]) -> None:
    """Sets every parameter to those drawn before, where the shape is the same, or draws them."""
    generator = torch.Generator().manual_seed(0)
    for name, param in module.named_parameters():
        if name not in drawn or drawn[name].shape != param.shape:
            mean = 1.0 if param.ndim <= 1 and not name.endswith('bias') else 0.0
            values = torch.randn(param.shape, generator=generator)
            drawn[name] = values.mul_(0.2 if param.ndim <= 1 else 0.05).add_(mean)
        param.data = drawn[name]


def describe_versions() -> str:
    """Whose list it is."""
    return f'timm {timm.__version__}'
