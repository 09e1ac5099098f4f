"""What of a plain ViT is trained: all of it, the blocks behind a frozen part, norms alone, or low-rank differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import nn

from addp_backbone.tuning.lora import LoRA, LoRALinear, add_lora


@dataclass(frozen=True)
class Tuning:
    """Which part of a backbone is trained.

    Attributes:
        frozen: True = nothing; a number k = not what stands in front of the blocks, nor the first k blocks.
        norms_only: Of the rest, only norms.
        lora: Of the rest, only low-rank differences.

    Raises:
        ValueError: If an option is out of range, or options contradict each other.
    """

    frozen: bool | int = False
    norms_only: bool = False
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.frozen, int) or self.frozen < 0:
            raise ValueError(f'frozen must be True, False or a number of blocks from 0 on, got {self.frozen!r}')
        if not isinstance(self.norms_only, bool):
            raise ValueError(f'norms_only must be True or False, got {self.norms_only!r}')
        if (self.frozen is True) + self.norms_only + (self.lora is not None) > 1:
            raise ValueError(
                f'frozen={self.frozen}, norms_only={self.norms_only} and lora={self.lora} contradict each other: give '
                'one of frozen=True, norms_only=True and lora=dict(rank=...); the last two go with frozen=K, which '
                'leaves the first K blocks out'
            )

    @classmethod
    def from_options(cls, frozen: bool | int, norms_only: bool, lora: Mapping[str, Any] | None) -> Tuning:
        """From a backbone's arguments; raises ``ValueError`` as the class does."""
        return cls(frozen, norms_only, None if lora is None else LoRA.from_options(lora))

    @property
    def selects(self) -> bool:
        """Whether, of the blocks that are not frozen, only a part is trained."""
        return self.norms_only or self.lora is not None

    @property
    def keeps_stem(self) -> bool:
        """Whether what stands in front of the blocks is frozen."""
        return self.frozen > 0 or self.selects


class PartlyTrainedViT(BaseModule):
    """A plain ViT of which only a part may be trained; what is frozen stays in eval mode and keeps no activations.

    Sub-classes say where their parts are by :meth:`stem_parts`, :meth:`blocks_in_use` and :attr:`NEW_PARAMETERS`, and
    call :meth:`set_tuning` once they are built.

    Attributes:
        tuning: What is trained.
        num_frozen_blocks: How many blocks, from the first, are frozen as a whole.
    """

    NEW_PARAMETERS: tuple[str, ...] = ()  # ends of names that no pre-training has: trained beside norms and LoRA
    tuning: Tuning = Tuning()
    num_frozen_blocks: int = 0

    def stem_parts(self) -> list[nn.Module | nn.Parameter]:
        """What stands in front of the blocks."""
        raise NotImplementedError

    def blocks_in_use(self) -> Sequence[nn.Module]:
        """The blocks up to the last output map."""
        raise NotImplementedError

    def set_tuning(self, frozen: bool | int, norms_only: bool, lora: Mapping[str, Any] | None, depth: int) -> None:
        """Freezes what is not trained, and adds low-rank differences.

        Args:
            frozen: See :class:`Tuning`.
            norms_only: Likewise.
            lora: ``dict(rank=, alpha=, mlp=)`` (:class:`LoRA`), or None.
            depth: Number of blocks of the ViT, more than those in use where the last of them are not needed.

        Raises:
            ValueError: If options are out of range, contradict each other, or leave nothing of the backbone to train.
        """
        self.tuning = Tuning.from_options(frozen, norms_only, lora)
        blocks = self.blocks_in_use()
        if frozen > depth:
            raise ValueError(f'frozen must be True, False or a number of blocks in [0, {depth}], got {frozen}')
        self.num_frozen_blocks = len(blocks) if frozen is True else min(int(frozen), len(blocks))
        if self.tuning.selects and self.num_frozen_blocks == len(blocks):
            raise ValueError(f'frozen={frozen} is all blocks in use, so that norms_only and lora have nothing to train')
        if self.tuning.lora is not None:
            for block in blocks[self.num_frozen_blocks :]:
                add_lora(block, self.tuning.lora)
        self.freeze()

    def freeze(self) -> None:
        """Freezes again; called by :meth:`train`, and needed after a part was replaced."""
        if not self.tuning.keeps_stem:
            return
        if self.tuning.frozen is True:
            self.requires_grad_(False)
            for module in self.children():
                module.eval()
            return
        if self.tuning.selects:
            selected = {id(param) for param in self._selected()}
            for param in self.parameters():
                param.requires_grad_(id(param) in selected)
        for part in (*self.stem_parts(), *self.blocks_in_use()[: self.num_frozen_blocks]):
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()

    def _selected(self) -> Iterator[nn.Parameter]:
        """What norms_only or lora train, before frozen parts are taken out."""
        for block in self.blocks_in_use():
            yield from (p for name, p in block.named_parameters() if name.endswith(self.NEW_PARAMETERS or ('\0',)))
        for module in self.modules():
            if self.tuning.norms_only and is_norm(module):
                yield from module.parameters(recurse=False)
            elif isinstance(module, LoRALinear):
                yield from (module.lora_A, module.lora_B)

    def train(self, mode: bool = True) -> PartlyTrainedViT:
        """Switches between training and evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        self.freeze()
        return self

    def has_gradients(self, block: int) -> bool:
        """Whether gradients are wanted of a block: they are on, and it is not frozen with all in front of it.

        Args:
            block: Index of a block; -1 is what stands in front of the blocks.
        """
        frozen = self.tuning.keeps_stem if block < 0 else block < self.num_frozen_blocks
        return torch.is_grad_enabled() and not frozen


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm of any kind: layer, RMS, batch or group norm, of torch or timm."""
    return 'norm' in type(module).__name__.lower()
