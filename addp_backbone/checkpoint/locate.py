"""From what a user names, a checkpoint or the work dir of a run, to a checkpoint file."""

from __future__ import annotations

from pathlib import Path

from mmengine.logging import print_log

from addp_backbone.checkpoint.errors import CheckpointError, refuse_remote


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
        What ``last_checkpoint`` names, also if the folder was moved since; if that is missing or was cut while being
        written, the newest ``iter_*.pth`` or ``epoch_*.pth``; None if there is none.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    named = pointer.read_text(encoding='utf-8').strip() if pointer.is_file() else ''
    for candidate in (Path(named), work_dir / Path(named).name):
        if named and candidate.is_file():
            return candidate
    saved = [*work_dir.glob('iter_*.pth'), *work_dir.glob('epoch_*.pth')]
    newest = max(saved, key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is not None:
        print_log(
            f'{pointer} names no checkpoint ({named or "empty or missing"}); taking the newest, {newest.name}',
            logger='current',
        )
    return newest
