"""Low-rank adaptation (LoRA, arXiv 2106.09685): a frozen matrix W learns a difference of low rank.

A layer computes ``W x + (alpha / rank) * B A x``, of which only A (rank, in) and B (out, rank) are trained. B starts at
zero, so that training begins with the pre-trained network. Departures from the paper: all of queries, keys, values and
the projection behind attention are adapted, where it takes queries and values; a joint ``qkv`` layer has one A for the
three. The deviation of A is unpublished; ours keeps the scale of x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone.checkpoint.errors import CheckpointError

ATTENTION_LAYERS = ('qkv', 'q_proj', 'k_proj', 'v_proj', 'proj')  # of a module that is called attn
MLP_LAYERS = ('fc1', 'fc2', 'fc1_g', 'fc1_x')  # of a module that is called mlp
LORA_ENDINGS = ('.lora_A', '.lora_B', '.lora_scale')  # of the names in a checkpoint


@dataclass(frozen=True)
class LoRA:
    """Options of low-rank adaptation.

    Attributes:
        rank: Rank of the learned difference, at least 1.
        alpha: The difference is scaled by alpha / rank; None = rank, a scale of 1 (ours).
        mlp: Whether the layers of the MLP are adapted, too.

    Raises:
        ValueError: If a value is out of range.
    """

    rank: int
    alpha: float | None = None
    mlp: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f'lora.rank is {self.rank!r}, wanted a whole number from 1 on')
        if self.alpha is not None and not (
            isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool) and 0 < self.alpha < float('inf')
        ):
            raise ValueError(f'lora.alpha is {self.alpha!r}, wanted a number above 0, or None for the rank')
        if not isinstance(self.mlp, bool):
            raise ValueError(f'lora.mlp is {self.mlp!r}, wanted True or False')

    @property
    def scale(self) -> float:
        """What the learned difference is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> LoRA:
        """Reads a config's ``dict(rank=, alpha=, mlp=)``.

        Raises:
            ValueError: If a name is unknown, the rank is missing or a value is out of range.
        """
        if not isinstance(options, Mapping):
            raise ValueError(f'lora is {options!r}, wanted dict(rank=8), which may have alpha and mlp')
        unknown = set(options) - {'rank', 'alpha', 'mlp'}
        if unknown or 'rank' not in options:
            raise ValueError(f'lora needs rank and may have alpha and mlp, nothing else; got {dict(options)}')
        return cls(**options)


class LoRALinear(nn.Linear):
    """A linear layer with a frozen weight and a trained difference of low rank.

    ``weight`` and ``bias`` keep their names in the state dict. The attribute ``weight`` is the *adapted* weight: timm's
    BEiT and EVA and this project's MLP multiply by it without calling the layer.

    Args:
        linear: The layer to adapt; its tensors are shared, not copied.
        lora: Options.

    Raises:
        ValueError: If the rank is larger than the layer's.
    """

    lora_scale: Tensor

    def __init__(self, linear: nn.Linear, lora: LoRA) -> None:
        largest = min(linear.in_features, linear.out_features)
        if lora.rank > largest:
            raise ValueError(
                f'lora.rank is {lora.rank}, but a layer of {linear.in_features} to {linear.out_features} channels has '
                f'at most rank {largest}: train the layer itself (frozen=K, or no option)'
            )
        super(nn.Linear, self).__init__()  # nn.Linear's own would make a weight, for which the property stands here
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._parameters['weight'] = linear._parameters['weight']  # a parameter beside the property
        self._parameters['bias'] = linear._parameters['bias']
        weight = linear.weight
        self.lora_A = nn.Parameter(weight.new_empty(lora.rank, self.in_features).normal_(std=self.in_features**-0.5))
        self.lora_B = nn.Parameter(weight.new_zeros(self.out_features, lora.rank))
        self.scale = lora.scale
        self.register_buffer('lora_scale', torch.tensor(self.scale, device=weight.device))  # to be in checkpoints
        self.freeze()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The adapted weight (out, in)."""
        return self.frozen_weight + self.scale * (self.lora_B @ self.lora_A)

    @property
    def frozen_weight(self) -> Tensor:
        """The pre-trained weight (out, in)."""
        weight = self._parameters['weight']
        assert weight is not None
        return weight

    def freeze(self) -> None:
        """Leaves A and B alone to be trained."""
        for name, param in self.named_parameters():
            param.requires_grad_(name.startswith('lora_'))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        return self.compute(x, F.linear)

    def compute(self, x: Tensor, linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        """Maps (..., in) to (..., out) by a function that does something before it multiplies.

        Args:
            x: What the function gets.
            linear: Of x, a weight (n, in) and a bias (n,); gives (..., n).
        """
        low = linear(x, self.lora_A, None) * self.scale
        return linear(x, self.frozen_weight, self.bias) + F.linear(low, self.lora_B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that computes the same; the sum is made in float64 and rounded once."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device='meta')
        old = self.frozen_weight
        weight = old.double() + self.scale * (self.lora_B.double() @ self.lora_A.double())
        linear.weight = nn.Parameter(weight.to(old.dtype), requires_grad=old.requires_grad)
        linear.bias = self.bias
        return linear.train(self.training)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        given = state_dict.get(f'{prefix}lora_scale')
        if isinstance(given, Tensor) and given.numel() == 1 and abs(float(given) - self.scale) > 1e-6 * self.scale:
            raise CheckpointError(
                f'{prefix}lora_scale is {float(given):g} in the checkpoint, but the config scales by alpha / rank = '
                f'{self.scale:g}: set model.backbone.lora.alpha as in training'
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def add_lora(block: nn.Module, lora: LoRA) -> None:
    """Replaces the linear layers of a transformer block by adapted ones, in place.

    Args:
        block: A block whose attention and MLP lie under names that begin with ``attn`` and with ``mlp`` or ``ffn``.
        lora: Options.

    Raises:
        ValueError: If the block has no layer of a wanted kind under a known name.
    """
    for kind, layers, wanted in ((('attn',), ATTENTION_LAYERS, True), (('mlp', 'ffn'), MLP_LAYERS, lora.mlp)):
        # not attn.rel_pos.mlp, which makes biases of positions
        owners = [m for name, m in block.named_modules() if name.startswith(kind) and 'rel_pos' not in name]
        found = [
            (owner, name, child)
            for owner in owners
            for name, child in owner.named_children()
            if name in layers and isinstance(child, nn.Linear)
        ]
        if wanted and not found:
            raise ValueError(f'LoRA does not know the {kind[0]} layers of {type(block).__name__}')
        for owner, name, child in found if wanted else []:
            setattr(owner, name, LoRALinear(child, lora))


def merge_lora(model: nn.Module) -> int:
    """Replaces every adapted layer of a model by a plain one that computes the same, in place.

    Returns:
        The number of layers.
    """
    found = [
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, LoRALinear)
    ]
    for owner, name, child in found:
        setattr(owner, name, child.merged())
    return len(found)
