"""Several backbones side by side: which block stands for each, how far apart they are, the table as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from addp_backbone.files.atomic import replace_file
from experiments.probes.bootstrap import Difference, paired_difference
from experiments.probes.results import RESULTS_FILE, Row
from experiments.probes.summary import Summary, best_blocks, summarise

BEST, LAST = 'best', 'last'
CSV_FILE = 'results.csv'
NOT_TOLD_APART = 'not told apart'


@dataclass(frozen=True)
class Compared:
    """Two backbones under one protocol and label fraction.

    Attributes:
        first: All seeds of one.
        second: All seeds of the other.
        difference: First minus second.
    """

    first: Summary
    second: Summary
    difference: Difference

    @property
    def verdict(self) -> str:
        """Which is higher, or :data:`NOT_TOLD_APART`."""
        if not self.difference.is_told_apart:
            return NOT_TOLD_APART
        return (self.first if self.difference.value > 0 else self.second).first.backbone

    def line(self) -> str:
        """The comparison as a line of text."""
        found = self.difference
        return (
            f'{self.first.first.backbone} - {self.second.first.backbone}: {self.first.first.protocol}, '
            f'{self.first.first.fraction:.0%}: {found.value:+.1f} (95 %: {found.low:+.1f} to {found.high:+.1f}): '
            + (f'{self.verdict} is higher' if found.is_told_apart else NOT_TOLD_APART)
        )

    def record(self) -> dict[str, Any]:
        """The comparison as ``results.json`` has it."""
        return dict(
            first=self.first.first.backbone,
            first_block=self.first.first.block,
            second=self.second.first.backbone,
            second_block=self.second.first.block,
            protocol=self.first.first.protocol,
            fraction=self.first.first.fraction,
            **self.difference.record(),
            higher=self.verdict,
        )


def read_rule(value: object) -> str | int:
    """Which block stands for a backbone: 'best', 'last' or a number.

    Raises:
        ValueError: If it is something else.
    """
    if value in (BEST, LAST) or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"block must be 'best', 'last' or a number from 1, got {value!r}")


def check_rule(rule: str | int, blocks: Mapping[str, Sequence[tuple[int, ...]]]) -> None:
    """Checks that the rule finds a block of each backbone, before anything is probed.

    Args:
        rule: From :func:`read_rule`.
        blocks: Name of a backbone -> what is probed of it, joined blocks in one tuple.

    Raises:
        ValueError: As :func:`choose_blocks` would.
    """
    alone = {name: {group[0] for group in groups if len(group) == 1} for name, groups in blocks.items()}
    lacking = [
        name for name, known in alone.items() if rule != BEST and (rule not in known if rule != LAST else not known)
    ]
    if lacking:
        raise ValueError(f'block {rule} of {", ".join(lacking)} is not probed: add it to blocks')


def choose_blocks(rows: Sequence[Row], rule: str | int) -> list[Summary]:
    """One summary for each backbone, protocol and label fraction.

    Args:
        rows: All rows.
        rule: 'best': the block with the highest mean, chosen on the validation images themselves; 'last': the last
            one that was probed alone; or a number.

    Raises:
        ValueError: If a backbone was not probed at the block.
    """
    summaries = summarise(rows)
    if rule == BEST:
        return best_blocks(summaries)
    chosen: dict[tuple[str, str, float], Summary] = {}
    for one in summaries:
        key, block = (one.first.backbone, one.first.protocol, one.first.fraction), one.first.block
        if rule == LAST and isinstance(block, int):
            if key not in chosen or block > int(chosen[key].first.block):
                chosen[key] = one
        elif block == rule:
            chosen[key] = one
    lacking = sorted({one.first.backbone for one in summaries} - {backbone for backbone, _, _ in chosen})
    if lacking:
        raise ValueError(f'block {rule} of {", ".join(lacking)} was not probed: add it to blocks')
    return list(chosen.values())


def compare(chosen: Sequence[Summary], reference: str | None = None) -> list[Compared]:
    """Compares every backbone with every other, or with one of them, under each protocol and label fraction.

    Args:
        chosen: From :func:`choose_blocks`.
        reference: The backbone that the others are compared with; None = all pairs.

    Returns:
        The comparisons; with a reference it is the second of each.

    Raises:
        ValueError: If the reference is none of the backbones.
    """
    if reference is not None and reference not in {one.first.backbone for one in chosen}:
        raise ValueError(f'the reference {reference!r} is none of the backbones')
    compared = []
    for first, second in combinations(chosen, 2):
        same = (first.first.protocol, first.first.fraction) == (second.first.protocol, second.first.fraction)
        names = first.first.backbone, second.first.backbone
        if not same or (reference is not None and reference not in names):
            continue
        if reference == names[0]:
            first, second = second, first
        difference = paired_difference([row.areas for row in first.rows], [row.areas for row in second.rows])
        compared.append(Compared(first, second, difference))
    return compared


def write_comparison(
    out: Path,
    rows: Sequence[Row],
    compared: Sequence[Compared],
    chosen: Sequence[Summary],
    about: Mapping[str, Any],
    trained: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``results.json`` (rows, means, differences, protocol) and ``results.csv`` (means).

    Args:
        out: The folder.
        rows: All rows.
        compared: From :func:`compare`.
        chosen: From :func:`choose_blocks`.
        about: How the rows were made.
        trained: Goes under ``trained`` in ``results.json``; None leaves the key out.
    """
    means = [
        dict(
            backbone=one.first.backbone,
            protocol=one.first.protocol,
            block=one.first.block,
            fraction=one.first.fraction,
            mIoU=round(one.mean, 4),
            sd=round(one.deviation, 4),
            num_seeds=len(one.rows),
        )
        for one in chosen
    ]
    content = dict(
        rows=[row.record() for row in rows],
        means=means,
        differences=[one.record() for one in compared],
        protocol=dict(about),
        **({} if trained is None else dict(trained=dict(trained))),
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(means[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(means)
    replace_file(out / CSV_FILE, text.getvalue())
    replace_file(out / RESULTS_FILE, json.dumps(content, indent=1, ensure_ascii=False) + '\n')
