"""No silent hang: who is late is named while the others wait for it."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

BEAT_SECONDS = 5.0


@dataclass
class _Peer:
    """What is known of a process.

    Attributes:
        host: Its host.
        pid: Its process id.
        step: Iterations that it has begun, of training and of validation.
        beat: How often it has reported.
        seen: When ``beat`` last changed, by our clock.
    """

    host: str = 'unknown'
    pid: int = 0
    step: int = 0
    beat: int = -1
    seen: float = 0.0


@HOOKS.register_module()
class WatchProcesses(Hook):
    """Says which process, on which host, the others wait for, once an iteration takes longer than it should.

    A thread of each process reports to the store of the process group how far it is. A process that has been in one
    iteration for ``patience_s`` looks who is behind, or has not reported for as long: one that was stopped, hangs or is
    cut off from the network. With one process it does nothing.

    Args:
        patience_s: Seconds until the first warning; as long between further ones.
    """

    priority = 'VERY_HIGH'

    def __init__(self, patience_s: float = 120.0) -> None:
        if patience_s <= 0:
            raise ValueError(f'patience_s must be positive, got {patience_s}')
        self.patience_s = patience_s
        self._watch: Watch | None = None

    def before_train(self, runner: Runner) -> None:
        """Starts the thread."""
        if get_world_size() > 1 and self._watch is None:
            store = dist.distributed_c10d._get_default_store()
            self._watch = Watch(store, get_rank(), get_world_size(), self.patience_s)
            self._watch.start()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Notes the progress."""
        if self._watch:
            self._watch.step += 1
            self._watch.began = time.monotonic()

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Notes the progress; processes may have different numbers of validation batches, so only the time counts."""
        if self._watch:
            self._watch.began = time.monotonic()

    def after_train(self, runner: Runner) -> None:
        """Ends the thread."""
        if self._watch:
            self._watch.stopped.set()
            self._watch.join(2 * BEAT_SECONDS)
            self._watch = None


class Watch(threading.Thread):
    """The thread of one process.

    Args:
        store: Of the process group.
        rank: Of this process.
        size: Number of processes.
        patience_s: As in :class:`WatchProcesses`.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, patience_s: float) -> None:
        super().__init__(name='watch-processes', daemon=True)
        self.store, self.rank, self.size, self.patience_s = store, rank, size, patience_s
        self.step, self.began, self.warned = 0, time.monotonic(), 0.0
        self.peers = {peer: _Peer(seen=time.monotonic()) for peer in range(size)}
        self.stopped = threading.Event()

    def run(self) -> None:
        """Reports and looks until training ends."""
        beat, interval = 0, min(BEAT_SECONDS, self.patience_s / 4)
        while not self.stopped.wait(interval):
            beat += 1
            try:
                self._report(beat)
                if time.monotonic() - self.began < self.patience_s:
                    continue
                self._read()
            except RuntimeError as error:  # torch's DistError is one
                _tell(f'rank {self.rank} cannot reach the store of the run any more: its host is gone ({error})')
                return
            now = time.monotonic()
            late = find_late(self.peers, self.step, now, self.patience_s)
            first = min(set(self.peers) - set(late), default=self.rank)
            if late and self.rank == first and now - self.warned > self.patience_s:
                self.warned = now
                _tell(f'iteration {self.step} has taken {now - self.began:.0f} s; late: {describe(late, self.step)}')

    def _report(self, beat: int) -> None:
        report = dict(host=socket.gethostname(), pid=os.getpid(), step=self.step, beat=beat)
        self.store.set(f'watch/{self.rank}', json.dumps(report))

    def _read(self) -> None:
        now = time.monotonic()
        for rank, peer in self.peers.items():
            key = f'watch/{rank}'
            if not self.store.check([key]):
                continue
            report = json.loads(self.store.get(key))
            if report['beat'] != peer.beat:
                peer.seen = now
            peer.host, peer.pid, peer.step, peer.beat = (report[name] for name in ('host', 'pid', 'step', 'beat'))


def find_late(peers: Mapping[int, _Peer], step: int, now: float, patience_s: float) -> dict[int, _Peer]:
    """Processes that are behind ``step``, or have not reported for a while."""
    return {
        rank: peer for rank, peer in peers.items() if peer.step < step or now - peer.seen > min(30.0, patience_s / 2)
    }


def describe(late: Mapping[int, _Peer], step: int) -> str:
    """Who is late, where, and since when."""
    parts = []
    for rank, peer in late.items():
        silent = time.monotonic() - peer.seen
        state = f'silent for {silent:.0f} s (stopped, or cut off?)' if peer.step >= step or silent > 30 else 'running'
        parts.append(f'rank {rank} on host {peer.host} (process {peer.pid}) in iteration {peer.step}, {state}')
    return '; '.join(parts)


def _tell(text: str) -> None:
    """Prints at once, on any rank: mmengine's logger drops what other ranks than 0 say."""
    print(f'warning: {text}', file=sys.stderr, flush=True)  # noqa: T201
