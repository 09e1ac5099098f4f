"""From what a user names, a checkpoint or the work dir of a run, to a checkpoint file."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from mmengine.logging import print_log

from addp_backbone.checkpoint.errors import CheckpointError, refuse_remote
from addp_backbone.checkpoint.integrity import Verdict, examine


def find_checkpoint(source: str | Path, option: str = 'checkpoint', advice: str = '') -> Path:
    """Finds the checkpoint that an option means: the file itself, or the latest checkpoint of a work dir.

    Args:
        source: A file or a folder, as the user gave it.
        option: The option it was given with, for the error.
        advice: What to do if there is none, for the error: a sentence without its full stop.

    Returns:
        An existing file.

    Raises:
        CheckpointError: If there is no such file, or the folder holds no checkpoint.
    """
    refuse_remote(source)
    path = Path(source).expanduser()
    found = find_latest_checkpoint(path) if path.is_dir() else path
    ending = f'; {advice}' if advice else ''
    if found is None:
        raise CheckpointError(f'{option} {source}: the folder holds no checkpoint iter_*.pth or epoch_*.pth{ending}')
    if not found.is_file():
        raise CheckpointError(f'{option} {source} does not exist{ending}')
    return found


def find_latest_checkpoint(work_dir: str | Path) -> Path | None:
    """Finds the latest checkpoint of a run.

    Args:
        work_dir: The run's folder.

    Returns:
        What ``last_checkpoint`` names, also if the folder was moved or copied since; if that is missing or was cut
        while being written, the newest ``iter_*.pth`` or ``epoch_*.pth``; None if there is none.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    named = pointer.read_text(encoding='utf-8').strip() if pointer.is_file() else ''
    for candidate in (work_dir / Path(named).name, Path(named)):  # the folder may be a copy of the one that is named
        if named and candidate.is_file():
            return candidate
    newest = max(saved_checkpoints(work_dir), key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is not None:
        print_log(
            f'{pointer} names no checkpoint ({named or "empty or missing"}); taking the newest, {newest.name}',
            logger='current',
        )
    return newest


def saved_checkpoints(work_dir: str | Path) -> list[Path]:
    """The checkpoints ``iter_*.pth`` and ``epoch_*.pth`` of a run, by their numbers, the last one first."""
    found = [*Path(work_dir).glob('iter_*.pth'), *Path(work_dir).glob('epoch_*.pth')]
    return sorted(found, key=_number, reverse=True)


def find_resumable_checkpoint(work_dir: str | Path) -> Path | None:
    """Finds the newest checkpoint of a run that is whole; says in the log which ones are not, and what that costs.

    Args:
        work_dir: The run's folder.

    Returns:
        The latest checkpoint (:func:`find_latest_checkpoint`) if it verifies, else the newest one that does; None if
        the folder holds no checkpoint.

    Raises:
        CheckpointError: If there are checkpoints, but none is whole.
    """
    latest = find_latest_checkpoint(work_dir)
    if latest is None:
        return None
    damaged: dict[Path, Verdict] = {}
    for candidate in (latest, *(path for path in saved_checkpoints(latest.parent) if _is_earlier(path, latest))):
        verdict = examine(candidate)
        if verdict:
            if damaged:
                print_log(_describe_fallback(candidate, damaged), logger='current', level=logging.WARNING)
            return candidate
        damaged[candidate] = verdict
    listed = ''.join(f'\n  {path.name}: {verdict}' for path, verdict in damaged.items())
    raise CheckpointError(
        f'no checkpoint in {work_dir} is whole, so there is nothing to resume from:{listed}\nRemove them to start from '
        'the beginning, or give --resume a copy'
    )


def _is_earlier(path: Path, latest: Path) -> bool:
    """Whether a checkpoint may be the same run's; an older file of a later iteration is that of an earlier run."""
    is_left_over = _number(path) > _number(latest) and path.stat().st_mtime_ns < latest.stat().st_mtime_ns
    return path != latest and not is_left_over


def _describe_fallback(chosen: Path, damaged: dict[Path, Verdict]) -> str:
    listed = '; '.join(f'{path.name} is {verdict}' for path, verdict in damaged.items())
    lost = max(_number(path) for path in damaged) - _number(chosen)
    unit = 'epochs' if chosen.name.startswith('epoch') else 'iterations'
    cost = f', so {lost} {unit} are lost and computed again' if lost > 0 else ''
    return f'{listed}. Going on from {chosen.name}, which is whole{cost}'


def _number(path: Path) -> int:
    """The iteration or epoch in a checkpoint's name; -1 if there is none."""
    found = re.fullmatch(r'(?:iter|epoch)_([0-9]+)\.pth', path.name)
    return int(found[1]) if found else -1
