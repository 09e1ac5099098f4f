"""Fits a schedule in iterations to a run of another length: warm-up, milestones, ends, intervals."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.config import Config

MAX_WARMUP_SHARE = 0.1  # of a run that is shorter than its recipe (ours)


def scale_schedulers(schedulers: list[dict[str, Any]], old_iters: int, new_iters: int) -> list[dict[str, Any]]:
    """Learning-rate schedulers for another number of iterations.

    A warm-up (a first scheduler that starts at 0 and has an end, with others behind it) keeps its length as long as it
    is at most :data:`MAX_WARMUP_SHARE` of the run; what begins where it ends moves with it. Milestones, ends and
    periods keep their shares of the run. A warm-up that would take less than one iteration is left out.

    Args:
        schedulers: mmengine's ``param_scheduler``; those that count epochs stay as they are.
        old_iters: The iterations that they are made for.
        new_iters: The iterations of the run, 1 or more.

    Returns:
        New dicts.
    """
    ratio = new_iters / old_iters
    warmup = schedulers[0].get('end') if len(schedulers) > 1 and not schedulers[0].get('begin', 0) else None
    new_warmup = min(warmup, int(new_iters * MAX_WARMUP_SHARE)) if warmup else 0

    def moved(iters: int) -> int:
        return new_warmup if warmup and iters == warmup else round(iters * ratio)

    scaled = []
    for scheduler in copy.deepcopy(schedulers):
        if scheduler.get('by_epoch', True):
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

    ``--cfg-options train_cfg.max_iters=50`` below a warm-up of 100 iterations leaves no iteration for what follows the
    warm-up, which mmengine refuses. Such schedules are scaled; others stay.

    Args:
        cfg: A training config.

    Returns:
        A line for the log; None if nothing had to change.
    """
    iters = cfg.train_cfg.get('max_iters')
    schedulers = cfg.get('param_scheduler')
    if not iters or not isinstance(schedulers, list):
        return None
    by_iter = [s for s in schedulers if not s.get('by_epoch', True)]
    begun = max((s.get('begin', 0) for s in by_iter), default=0)
    if begun < iters:
        return None
    reached = max([begun + 1, *(s['end'] for s in by_iter if s.get('end')), *_milestones(by_iter)])
    cfg.param_scheduler = scale_schedulers(schedulers, reached, iters)
    return f'learning-rate schedule: its {begun} iterations of warm-up do not fit into {iters}; shortened in proportion'


def _milestones(schedulers: list[dict[str, Any]]) -> list[int]:
    return [milestone for scheduler in schedulers for milestone in scheduler.get('milestones', [])]
