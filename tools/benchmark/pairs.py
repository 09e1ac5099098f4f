"""What every benchmark here shares: alternating calls of ours and of a peer, peak memory, rows as JSON or Markdown.

Each side lives in a process of its own, which imports, makes weights and inputs, and then waits. The sides are called
in turn; while one works, the others sleep. The first call of each only warms up; times are medians of the calls after
it. Peak memory is the largest resident set of all calls (Linux: VmHWM, reset before the first call) minus the resident
set after imports, weights and inputs; so it is what the work needs on top of its network.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Sequence[float]]
Side = Callable[[], Call]  # makes networks and inputs, returns what is timed, whose result says what was computed

_PRELOADED = [
    'torch',
    'addp_backbone',
    'pretrain',
    'transformers.models.vitdet.modeling_vitdet',
]  # imported once, in the process that the sides are forked from
_GB = 1e9


@dataclass(frozen=True)
class Measured:
    """One side's calls.

    Attributes:
        times_s: Seconds of each timed call.
        memory_gb: Peak memory of all calls over that of the idle process, in 10^9 bytes.
        result: What the last call returned.
    """

    times_s: tuple[float, ...]
    memory_gb: float
    result: tuple[float, ...]

    @property
    def time_s(self) -> float:
        """Median time of a call."""
        return statistics.median(self.times_s)


@dataclass(frozen=True)
class BenchmarkRow:
    """A line of the table; ``--json`` prints it.

    Attributes:
        row: Its name.
        ours: Time or speed of ours, in ``unit``.
        peer: The peer's; None where there is none.
        unit: Of both.
        ratio: ours / peer, or None.
        goal: What the ratio should be, or ''.
        ours_memory_gb: Peak memory, in 10^9 bytes; None if not measured.
        peer_memory_gb: The peer's.
        threads: CPU threads of each side.
        torch: torch's version.
        note: What the peer is, and whatever else belongs to the numbers.
        difference: Largest difference between both sides' results over the peer's largest; None if not compared.
    """

    row: str
    ours: float
    peer: float | None
    unit: str
    ratio: float | None
    goal: str
    ours_memory_gb: float | None = None
    peer_memory_gb: float | None = None
    threads: int = 1
    torch: str = torch.__version__
    note: str = ''
    difference: float | None = None


def measure(sides: Mapping[str, Side], pairs: int, threads: int) -> dict[str, Measured]:
    """Calls several sides in alternation, each in a fresh process.

    Args:
        sides: Name -> a picklable function (of a module, or a ``functools.partial`` of one) that prepares a side.
        pairs: Timed calls of each side, after one that warms up.
        threads: CPU threads of torch in each process.

    Returns:
        Name -> what was measured.

    Raises:
        ValueError: If there is nothing to time.
        RuntimeError: If a side fails or is killed.
    """
    if pairs < 1:
        raise ValueError(f'pairs must be at least 1, got {pairs}')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(_PRELOADED)
    workers = {name: _Worker(context, name, side, threads) for name, side in sides.items()}
    try:
        for worker in workers.values():  # one after the other: they must not compete
            worker.receive()
        times: dict[str, list[float]] = {name: [] for name in workers}
        results: dict[str, tuple[float, ...]] = {}
        for turn in range(1 + pairs):
            for name, worker in workers.items():
                seconds, results[name] = worker.call()
                if turn:
                    times[name].append(seconds)
        return {
            name: Measured(tuple(times[name]), worker.memory_gb(), results[name]) for name, worker in workers.items()
        }
    finally:
        for worker in workers.values():
            worker.stop()


def difference(got: Sequence[float], wanted: Sequence[float]) -> float:
    """The largest difference between two results, relative to the largest value wanted."""
    a, b = torch.tensor(got, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64)
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def time_row(
    name: str,
    ours: Measured,
    peer: Measured | None,
    threads: int,
    goal: str = '',
    note: str = '',
    unit: str = 's',
    per_call: int = 1,
) -> BenchmarkRow:
    """A row of times; ``per_call`` images or the like are counted in a call."""
    row = BenchmarkRow(
        row=name,
        ours=ours.time_s / per_call,
        peer=None,
        unit=unit,
        ratio=None,
        goal=goal,
        ours_memory_gb=ours.memory_gb,
        threads=threads,
        note=note,
    )
    if peer is None:
        return row
    return replace(
        row,
        peer=peer.time_s / per_call,
        ratio=ours.time_s / peer.time_s,
        peer_memory_gb=peer.memory_gb,
        difference=difference(ours.result, peer.result),
    )


def add_arguments(parser: argparse.ArgumentParser, pairs: int = 3) -> None:
    """Adds the options that every row's command has."""
    parser.add_argument(
        '--pairs', type=int, default=pairs, metavar='N', help='timed calls of each side (default: %(default)s)'
    )
    parser.add_argument(
        '--threads', type=int, default=torch.get_num_threads(), metavar='T', help='CPU threads (default: %(default)s)'
    )
    parser.add_argument('--smoke', action='store_true', help='tiny sizes, to see that the command works')
    parser.add_argument('--json', action='store_true', help='print one JSON line a row')


def print_row(row: BenchmarkRow, as_json: bool) -> None:
    """Prints a row for people, or as JSON."""
    if as_json:
        print(json.dumps(asdict(row)), flush=True)
        return
    lines = [
        row.row,
        f'  ratio  {_number(row.ratio)}   (goal: {row.goal or "none"})',
        f'  ours   {_number(row.ours)} {row.unit}',
        f'  peer   {_number(row.peer)} {row.unit}',
        f'  memory {_memory(row)} GB (ours / peer)',
        f'  {row.threads} threads, torch {row.torch}; relative difference of the results {_number(row.difference)}',
        f'  {row.note}',
    ]
    print('\n'.join(lines), flush=True)


def markdown(rows: Sequence[BenchmarkRow]) -> str:
    """The rows as a table."""
    lines = [
        '| work | ratio | goal | ours | peer | unit | memory, GB (ours / peer) | threads | note |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    lines += [
        f'| {row.row} | {_number(row.ratio)} | {row.goal} | {_number(row.ours)} | {_number(row.peer)} | {row.unit} | '
        f'{_memory(row)} | {row.threads} | {row.note} |'
        for row in rows
    ]
    return '\n'.join(lines)


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.3g}'


def _memory(row: BenchmarkRow) -> str:
    if row.ours_memory_gb is None:
        return '-'
    if row.peer_memory_gb is None:
        return f'{row.ours_memory_gb:.2f} / -'
    ratio = row.ours_memory_gb / max(row.peer_memory_gb, 1e-9)
    return f'{row.ours_memory_gb:.2f} / {row.peer_memory_gb:.2f} = {ratio:.2f}'


class _Worker:
    """One side's process, seen from outside."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, name: str, side: Side, threads: int) -> None:
        self.name = name
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, side, threads), daemon=True)
        self.process.start()
        theirs.close()

    def call(self) -> tuple[float, tuple[float, ...]]:
        """Seconds and result of a call."""
        self.connection.send('call')
        return self.receive()

    def memory_gb(self) -> float:
        self.connection.send('memory')
        return self.receive()

    def receive(self) -> Any:
        """The answer to what was asked, after the preparation None."""
        try:
            failure, answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise RuntimeError(
                f'the process of {self.name!r} ended with code {self.process.exitcode} (-9: out of memory?)'
            ) from None
        if failure:
            raise RuntimeError(f'the process of {self.name!r} failed:\n{failure}')
        return answer

    def stop(self) -> None:
        self.connection.close()
        self.process.join(timeout=10)
        self.process.kill()


def _serve(connection: Connection, side: Side, threads: int) -> None:
    """The life of a side's process."""
    try:
        torch.set_num_threads(threads)
        call = side()
        baseline = _reset_peak()
        connection.send((None, None))
        while True:
            if connection.recv() == 'memory':
                connection.send((None, (_peak() - baseline) / _GB))
                continue
            gc.collect()
            start = time.perf_counter()
            result = call()
            seconds = time.perf_counter() - start
            connection.send((None, (seconds, tuple(map(float, result)))))
    except EOFError:
        return
    except Exception:
        connection.send((traceback.format_exc(), None))


def _reset_peak() -> int:
    """Forgets the peak so far, where the system can; returns the resident bytes."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
        return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()
    except OSError:  # no Linux: a peak of the preparation remains in the peak
        return _peak()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
