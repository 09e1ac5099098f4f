"""What is probed and how: protocols, blocks, label fractions, seeds and the protocols' own numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from experiments.probes.linear import ITERS
from experiments.probes.logistic import FEW_PATCHES, L2, MAX_ITERS, MAX_ITERS_OF_FEW
from experiments.probes.retrieval import MEMORY_SIZE, NEIGHBOURS, TEMPERATURE

if TYPE_CHECKING:
    from experiments.probes.backbones import Source

LINEAR, LOGISTIC, KNN = 'linear', 'logistic', 'knn'
PROTOCOLS = (LINEAR, LOGISTIC, KNN)
ALL_BLOCKS = 'all'
PRECISIONS = ('fp32', 'bf16')
NUM_PATCHES = 40_000


@dataclass(frozen=True)
class ProbeSettings:
    """What is asked for.

    Attributes:
        protocols: Of :data:`PROTOCOLS`.
        blocks: Block numbers from 1, several joined by '+' (``'9'``, ``'3+6+9'``), or 'all'; none = half, three
            quarters and all of the depth.
        fractions: Of the training images, each in (0, 1].
        seeds: Of the subsets of images and patches.
        size: (width, height) that images are resized to; None = :func:`experiments.probes.data.common_size`.
        num_patches: Training patches of the protocol 'logistic'.
        l2: Its penalty.
        memory_size: Training patches of the protocol 'knn'.
        linear_iters: Iterations of the protocol 'linear'.
        precision: 'fp32' or 'bf16'.
        device: Where to compute.
    """

    protocols: tuple[str, ...] = (LOGISTIC,)
    blocks: tuple[str, ...] = ()
    fractions: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0,)
    size: tuple[int, int] | None = None
    num_patches: int = NUM_PATCHES
    l2: float = L2
    memory_size: int = MEMORY_SIZE
    linear_iters: int = ITERS
    precision: str = 'fp32'
    device: str = 'cpu'

    def __post_init__(self) -> None:
        if not self.protocols or not set(self.protocols) <= set(PROTOCOLS):
            raise ValueError(f'protocols must be of {", ".join(PROTOCOLS)}, got {", ".join(self.protocols) or "none"}')
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f'label fractions must lie in (0, 1], got {self.fractions}')
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f'seeds must be 0 or more, got {self.seeds}')
        for name, values in (('protocols', self.protocols), ('fractions', self.fractions), ('seeds', self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f'{name} must differ, got {values}')
        if self.precision not in PRECISIONS:
            raise ValueError(f'precision must be one of {", ".join(PRECISIONS)}, got {self.precision!r}')
        counts = self.num_patches, self.memory_size, self.linear_iters
        if not all(isinstance(count, int) for count in counts):
            raise ValueError(f'patches, memory and iterations must be whole numbers, got {counts}')
        if min(counts) < 1 or not 0 <= self.l2 < math.inf:
            raise ValueError(
                f'patches, memory and iterations must be at least 1 and L2 at least 0, got {counts}, {self.l2}'
            )

    def chosen_blocks(self, source: Source) -> tuple[tuple[int, ...], ...]:
        """The blocks of one backbone, those to be joined in one tuple.

        Raises:
            ValueError: If the backbone has no such block, or a word is no block.
        """
        if self.blocks == (ALL_BLOCKS,):
            return tuple((block,) for block in range(1, source.depth + 1))
        if not self.blocks:
            return tuple((block,) for block in sorted({round(source.depth * part) or 1 for part in (0.5, 0.75, 1)}))
        chosen = [read_blocks(word) for word in self.blocks]
        outside = sorted({block for group in chosen for block in group if block > source.depth})
        if outside:
            raise ValueError(f'{source.text} has blocks 1 to {source.depth}, but {outside} was asked for')
        if len(set(chosen)) != len(chosen):
            raise ValueError(f'blocks must differ, got {" ".join(self.blocks)}')
        return tuple(chosen)

    def of_protocol(self, protocol: str) -> dict[str, float | int]:
        """The numbers that a protocol's score depends on."""
        if protocol == LOGISTIC:
            few = dict(few_patches=FEW_PATCHES, max_iters_of_few=MAX_ITERS_OF_FEW)
            return dict(patches=self.num_patches, l2=self.l2, max_iters=MAX_ITERS, **few)
        if protocol == KNN:
            return dict(memory=self.memory_size, neighbours=NEIGHBOURS, temperature=TEMPERATURE)
        return dict(iters=self.linear_iters)


def read_blocks(word: str) -> tuple[int, ...]:
    """Block numbers of ``'9'`` or ``'3+6+9'``.

    Raises:
        ValueError: If the word is something else, or a number is below 1 or twice there.
    """
    try:
        blocks = tuple(int(part) for part in word.split('+'))
    except ValueError:
        blocks = ()
    if not blocks or min(blocks) < 1 or list(blocks) != sorted(set(blocks)):
        raise ValueError(
            f'blocks are numbers from 1, ascending ones joined by + to put their tokens together, or all; got {word!r}'
        )
    return blocks


def block_label(blocks: Sequence[int]) -> int | str:
    """How results name blocks: 9, or '3+6+9'."""
    return blocks[0] if len(blocks) == 1 else '+'.join(map(str, blocks))


@dataclass(frozen=True)
class CacheSettings:
    """Where features are kept.

    Attributes:
        folder: The folder.
        max_bytes: Its bound.
    """

    folder: Path
    max_bytes: int

    def __post_init__(self) -> None:
        if self.max_bytes <= 0:
            raise ValueError(f'--cache-gb must be positive, got {self.max_bytes / 10**9:g}')


def best_device() -> str:
    """'cuda' where there is a GPU, else 'cpu'."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'
