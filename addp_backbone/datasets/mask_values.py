"""What the values in segmentation masks mean: which are classes, which is void. Decided by all masks, or asked for.

Class ids start at 0 or at 1; pixels of no class (void) are 0, 255, or the number after the last class; and 0 may be a
background that the class list does not name. Two of these conventions often fit the same values, and the wrong one
trains every class under its neighbour's name, so that only clear evidence decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from addp_backbone.datasets.findings import Findings

VOID_ZERO, VOID_255 = 'zero', '255'  # ADE20K's convention (classes from 1), and the other (classes from 0)
NUM_VALUES = 2**16
MAX_VOID_SHARE = 0.1  # more void than that is shown as a warning, and no evidence for a convention
UNCLEAR = 'void convention unclear'


@dataclass(frozen=True)
class MaskValues:
    """The values of one mask.

    Attributes:
        split: 'train' or 'val'.
        path: The file.
        counts: Pixels by value, (largest value + 1,).
        edges: Those of them that touch another value, (largest value + 1,).
    """

    split: str
    path: Path
    counts: NDArray[np.int64]
    edges: NDArray[np.int64]


def count_edges(values: NDArray[np.generic]) -> NDArray[np.int64]:
    """Pixels by value that touch another value beside, above or below them; (H, W) -> (largest value + 1,)."""
    edge = np.zeros(values.shape, bool)
    across, down = values[:, 1:] != values[:, :-1], values[1:] != values[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    largest = int(values.max(initial=0))
    return np.bincount(values[edge].astype(np.int64), minlength=largest + 1)


class _Statistics:
    """Sums over all masks, by value."""

    def __init__(self, masks: Sequence[MaskValues]) -> None:
        size = max((len(mask.counts) for mask in masks), default=0) + 1
        self.pixels, self.edges, self.masks = (np.zeros(size, np.int64) for _ in range(3))
        for mask in masks:
            self.pixels[: len(mask.counts)] += mask.counts
            self.edges[: len(mask.edges)] += mask.edges
            self.masks[: len(mask.counts)] += mask.counts > 0
        self.present = {int(value) for value in np.flatnonzero(self.pixels)}

    def share(self, value: int) -> float:
        """Share of all pixels."""
        return float(self.pixels[value] / max(self.pixels.sum(), 1)) if value < len(self.pixels) else 0.0

    def edge_share(self, value: int) -> float:
        """Share of the value's pixels that touch another value: high for the thin seams that void often is."""
        return float(self.edges[value] / max(self.pixels[value], 1))


def decide_void(masks: Sequence[MaskValues], num_classes: int, where: Path, findings: Findings) -> str:
    """Tells the convention by the values of all masks.

    Args:
        masks: The values of every mask.
        num_classes: Length of the class list.
        where: The folder, for messages.
        findings: Takes an error where several conventions fit, and a warning where one was guessed.

    Returns:
        :data:`VOID_ZERO` or :data:`VOID_255`; only meaningful without errors.
    """
    found = _Statistics(masks)
    present, n = found.present, num_classes
    if not present:
        return VOID_ZERO
    if present == {0, 255}:
        findings.error(
            UNCLEAR,
            where,
            'all masks',
            f'only 0 ({found.share(0):.1%}) and 255 ({found.share(255):.1%}) occur: a mask of black and white? '
            'Give --convert binary (0 = first class, 255 = second), or --void 255 if 255 is void',
        )
        return VOID_255
    if n in present:
        if 0 in present and not _zero_is_void(found, n):
            findings.error(UNCLEAR, where, 'all masks', _explain(found, masks, n))
        elif 0 in present and found.share(0) > MAX_VOID_SHARE:
            findings.warn('much void', where, 'all masks', f'0 is taken for void: {found.share(0):.1%} of all pixels')
        return VOID_ZERO
    largest = max(present - {255}, default=0)
    if 0 not in present and 255 not in present and largest < n:
        findings.error(
            UNCLEAR,
            where,
            'all masks',
            f'values {min(present)} to {largest} of {n} classes fit both: give --void zero (0 = void, classes from 1) '
            'or --void 255 (255 = void, classes from 0)',
        )
    elif largest < n - 1:
        findings.warn(
            'void convention guessed',
            where,
            'all masks',
            f'the largest value is {largest}: classes are taken to be numbered from 0; if 0 is void, give --void zero',
        )
    elif found.share(255) > MAX_VOID_SHARE:
        findings.warn('much void', where, 'all masks', f'255 is taken for void: {found.share(255):.1%} of all pixels')
    return VOID_255


def _zero_is_void(found: _Statistics, n: int) -> bool:
    """Whether 0 rather than n looks like void: little, thinner than n, and in as many masks."""
    return (
        found.share(0) <= MAX_VOID_SHARE
        and found.edge_share(0) > found.edge_share(n)
        and found.masks[0] >= found.masks[n] > 0
        and len(found.present) > 2
    )


def _explain(found: _Statistics, masks: Sequence[MaskValues], n: int) -> str:
    example = next(mask.path.name for mask in masks if len(mask.counts) > n and mask.counts[n])
    few = f' (only {found.pixels[n]} pixels in {found.masks[n]} masks: strays?)' if found.share(n) < 1e-4 else ''
    return (
        f'values from 0 to {n} occur, with {n} classes: {found.share(0):.1%} of the pixels are 0, {found.share(n):.2%} '
        f'are {n}{few}, as in {example}. Give --void zero (0 = void, classes from 1), --void last (classes from 0, {n} '
        f'= void), or --void background (0 is a class that the list does not name, the others follow from 1)'
    )


def check_values(masks: Sequence[MaskValues], classes: Sequence[str], void: str, findings: Findings) -> None:
    """Reports values that are no class, masks without any class, classes without pixels; adds the histogram."""
    first = 1 if void == VOID_ZERO else 0
    allowed = np.zeros(NUM_VALUES, bool)
    allowed[first : first + len(classes)] = True
    allowed[[0, 255] if void == VOID_ZERO else [255]] = True
    totals: dict[str, NDArray[np.int64]] = {}
    for mask in masks:
        outside = np.flatnonzero(mask.counts * ~allowed[: len(mask.counts)])
        if len(outside):
            listed = ', '.join(f'{value} ({mask.counts[value]} px)' for value in outside[:5])
            findings.error(
                'ids outside the classes',
                mask.path,
                '',
                f'{listed}; wanted {first} to {first + len(classes) - 1}, void '
                + ('0' if void == VOID_ZERO else '255')
                + '; --map OLD=NEW changes values',
            )
        labelled = np.pad(mask.counts, (0, max(0, first + len(classes) - len(mask.counts))))
        labelled = labelled[first : first + len(classes)]
        if not labelled.any():
            findings.warn('mask all void', mask.path, '', 'no pixel of any class')
        totals[mask.split] = totals.get(mask.split, 0) + labelled
    for split, total in totals.items():
        findings.histogram[split] = {
            name: float(n) for name, n in zip(classes, total / max(total.sum(), 1), strict=True)
        }
        if not total.any():
            findings.error(
                'no labelled pixel',
                split,
                '',
                f'all {sum(mask.split == split for mask in masks)} masks are void everywhere (void: {void}), so that '
                'nothing could be learned or measured: give the convention of the masks with --void, or --convert',
            )
        for name, n in zip(classes, total, strict=True):
            if not n:
                findings.warn('class without pixels', split, f'class {name!r}', 'occurs in no mask')


def describe_values(masks: Sequence[MaskValues], classes: Sequence[str], void: str) -> list[str]:
    """How the values are read, a line each: value, class, share of all pixels, number of masks, an example."""
    found = _Statistics(masks)
    first = 1 if void == VOID_ZERO else 0
    rows = [('value', 'class', 'share', 'masks', 'for example')]
    for value in sorted(found.present):
        if value == 255 or (value == 0 and first == 1):
            name = 'void (left out)'
        else:
            name = classes[value - first] if first <= value < first + len(classes) else 'NO CLASS'
        example = next(mask.path.name for mask in masks if value < len(mask.counts) and mask.counts[value])
        rows.append((str(value), name, f'{found.share(value):.2%}', str(found.masks[value]), example))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
