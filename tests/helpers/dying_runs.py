"""Runs of tools/compare.py that kill themselves, in children of a server that has imported it and run nothing.

A fork of the test process itself could not train: other tests may have started autograd's threads there, which do not
survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

from running import load_tool

from experiments.probes.features import Extraction
from experiments.probes.results import RowStore

TOOL = load_tool('compare')
OWNERS: dict[str, Any] = dict(Extraction=Extraction, RowStore=RowStore)


def run_and_die(command: list[str], owner: str, method: str, after: int) -> None:
    """Runs the command in a child that kills itself when a method is called once more than ``after`` times.

    Args:
        command: Its words.
        owner: Key of ``OWNERS``, the class.
        method: Of the class.
        after: Number of calls that succeed.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_work, args=(command, owner, method, after))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _work(command: list[str], owner: str, method: str, after: int) -> None:
    calls, original = 0, getattr(OWNERS[owner], method)

    def die(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(OWNERS[owner], method, die)
    TOOL.main(command)
