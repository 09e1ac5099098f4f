"""The sizes of every ViT in this repository, and what follows from them.

A config says ``arch='base'``; width, depth, heads, global-attention blocks and the blocks UperNet taps are derived
here, so that no other file types them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """Size of a plain ViT.

    Attributes:
        width: Channels of a token.
        depth: Number of transformer blocks.
        num_heads: Attention heads; must divide ``width``.
    """

    width: int
    depth: int
    num_heads: int

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.num_heads) < 1:
            raise ValueError(f'width, depth and num_heads must be at least 1, got {self}')
        if self.width % self.num_heads:
            raise ValueError(
                f'width must be a multiple of num_heads, got {self}: {self.width} / {self.num_heads} is not an integer'
            )

    @property
    def global_attn_indices(self) -> tuple[int, ...]:
        """0-based blocks with global attention: evenly spaced, the last block always among them.

        Four for 8 blocks and more (ViTDet: base 2, 5, 8, 11; large 5, 11, 17, 23; huge 7, 15, 23, 31), fewer for
        shallower networks.
        """
        num_global = min(4, max(1, self.depth // 2))
        return tuple(self.depth * (i + 1) // num_global - 1 for i in range(num_global))

    @property
    def upernet_indices(self) -> tuple[int, int, int, int]:
        """0-based blocks that UperNet taps, at 1/3, 1/2, 2/3 and all of the depth.

        MAE's for base: 3, 5, 7, 11; BEiT's for large: 7, 11, 15, 23.
        """
        first, second, third = (max(1, round(self.depth * part)) - 1 for part in (1 / 3, 1 / 2, 2 / 3))
        return first, second, third, self.depth - 1

    @property
    def vitdet_drop_path_rate(self) -> float:
        """Stochastic depth as ViTDet has it for B, L and H: 0.1 up to 12 blocks, 0.4 up to 24, 0.5 beyond."""
        return 0.1 if self.depth <= 12 else 0.4 if self.depth <= 24 else 0.5


def vitdet_decay_rate(depth: int) -> float:
    """Layer-wise learning-rate decay as ViTDet has it for B, L and H: 0.7 up to 12 blocks, 0.8 up to 24, 0.9 beyond.

    Args:
        depth: Number of blocks.
    """
    return 0.7 if depth <= 12 else 0.8 if depth <= 24 else 0.9


PRESETS: dict[str, Arch] = {
    'tiny': Arch(width=192, depth=4, num_heads=3),  # ours: for tests, debugging and laptops
    'base': Arch(width=768, depth=12, num_heads=12),
    'large': Arch(width=1024, depth=24, num_heads=16),
    'huge': Arch(width=1280, depth=32, num_heads=16),  # ViTDet's and MAE's; ADDP has none
}


def get_arch(arch: str | Mapping[str, int] | Arch) -> Arch:
    """Looks up an architecture.

    Args:
        arch: A preset's name, ``dict(width=, depth=, num_heads=)`` or an :class:`Arch`.

    Returns:
        The architecture.

    Raises:
        ValueError: If the name is unknown or the dict has other keys than the three.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        if arch not in PRESETS:
            raise ValueError(f'unknown arch {arch!r}: use one of {sorted(PRESETS)} or dict(width=, depth=, num_heads=)')
        return PRESETS[arch]
    if set(arch) != {'width', 'depth', 'num_heads'}:
        raise ValueError(f'an arch dict needs exactly the keys width, depth and num_heads, got {sorted(arch)}')
    return Arch(**arch)


def resolve_block_indices(
    indices: Sequence[int], depth: int, option: str, may_be_empty: bool = False
) -> tuple[int, ...]:
    """Turns block indices, negative ones counted from the end, into ascending 0-based ones.

    Args:
        indices: Block indices in ``[-depth, depth)``.
        depth: Number of blocks.
        option: The option's name, for the error.
        may_be_empty: Whether no index at all is fine.

    Returns:
        The non-negative indices in the order given.

    Raises:
        ValueError: If an index is no whole number, out of range, given twice or out of order, or there is none.
    """
    is_list = isinstance(indices, Sequence) and all(isinstance(i, int) and not isinstance(i, bool) for i in indices)
    if not is_list or not (indices or may_be_empty):
        raise ValueError(f'{option} must be a list or tuple of whole numbers, e.g. ({depth - 1},), got {indices!r}')
    resolved = tuple(i + depth if i < 0 else i for i in indices)
    if any(not 0 <= i < depth for i in resolved) or list(resolved) != sorted(set(resolved)):
        raise ValueError(
            f'{option} must be ascending block indices in [0, {depth}) (or negative, from the end), '
            f'got {tuple(indices)}'
        )
    return resolved
