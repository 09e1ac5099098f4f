"""Fits a schedule in iterations or epochs to a run of another length: warm-up, milestones, ends, intervals."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.config import Config

MAX_WARMUP_SHARE = 0.1  # of a run that is shorter than its recipe (ours)


def scale_schedulers(
    schedulers: list[dict[str, Any]], old_length: int, new_length: int, by_epoch: bool = False
) -> list[dict[str, Any]]:
    """Learning-rate schedulers for another number of iterations, or of epochs.

    A warm-up (a first scheduler that starts at 0 and has an end, with others behind it) keeps its length as long as it
    is at most :data:`MAX_WARMUP_SHARE` of the run; what begins where it ends moves with it. Milestones, ends and
    periods keep their shares of the run. A warm-up that would take less than one iteration, or epoch, is left out.

    Args:
        schedulers: mmengine's ``param_scheduler``; those that count in the other unit stay as they are.
        old_length: The iterations, or epochs, that they are made for.
        new_length: The iterations, or epochs, of the run, 1 or more.
        by_epoch: Whether lengths are epochs.

    Returns:
        New dicts.
    """
    ratio = new_length / old_length
    warmup = schedulers[0].get('end') if len(schedulers) > 1 and not schedulers[0].get('begin', 0) else None
    new_warmup = min(warmup, int(new_length * MAX_WARMUP_SHARE)) if warmup else 0

    def moved(point: int) -> int:
        return new_warmup if warmup and point == warmup else round(point * ratio)

    scaled = []
    for scheduler in copy.deepcopy(schedulers):
        if scheduler.get('by_epoch', True) != by_epoch:
            scaled.append(scheduler)
            continue
        for key in ('begin', 'end', 'T_max', 'step_size', 'total_steps'):
            if scheduler.get(key):
                scheduler[key] = max(moved(scheduler[key]), key not in ('begin', 'end'))
        if 'milestones' in scheduler:
            scheduler['milestones'] = [round(milestone * ratio) for milestone in scheduler['milestones']]
        if scheduler.get('end') is None or scheduler['end'] > scheduler.get('begin', 0):
            scaled.append(scheduler)
    return scaled


def fit_schedule(cfg: Config) -> str | None:
    """Makes the learning-rate schedule end where a shortened run ends; changes ``cfg`` in place.

    ``--cfg-options train_cfg.max_iters=50`` below a warm-up of 100 iterations, or ``train_cfg.max_epochs=10`` below one
    of 20 epochs, leaves nothing for what follows the warm-up, which mmengine refuses. Such schedules are scaled; others
    stay.

    Args:
        cfg: A training config.

    Returns:
        A line for the log; None if nothing had to change.
    """
    schedulers = cfg.get('param_scheduler')
    for key, unit in (('max_iters', 'iterations'), ('max_epochs', 'epochs')):
        length, by_epoch = cfg.train_cfg.get(key), key == 'max_epochs'
        if not length or not isinstance(schedulers, list):
            continue
        counted = [s for s in schedulers if s.get('by_epoch', True) == by_epoch]
        begun = max((s.get('begin', 0) for s in counted), default=0)
        if begun >= length:
            reached = max([begun + 1, *(s['end'] for s in counted if s.get('end')), *_milestones(counted)])
            cfg.param_scheduler = scale_schedulers(schedulers, reached, length, by_epoch)
            return (
                f'learning-rate schedule: its {begun} {unit} of warm-up do not fit into {length}; '
                'shortened in proportion'
            )
    return None


def _milestones(schedulers: list[dict[str, Any]]) -> list[int]:
    return [milestone for scheduler in schedulers for milestone in scheduler.get('milestones', [])]
