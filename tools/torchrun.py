"""Starts the processes of tools/dist_*.sh by torchrun, passes signals on to them and reports preemption.

    tools/torchrun.sh PROCESSES SCRIPT [arguments]       environment: NNODES NODE_RANK MASTER_ADDR PORT MAX_RESTARTS

SIGTERM, SIGINT and SIGUSR1 reach the processes of the run and not torchrun, which would kill them after 30 s. A second
signal ends everything at once. Exit code 85 if the run saved and ended because of a signal, else torchrun's. On one
machine the store of the run and gloo listen on localhost only.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from command_line import make_parser, run_command

PREEMPTED, MARKER_FILE, RUN_FOLDER = 85, 'preempted', 'ADDP_RUN_FOLDER'  # as in addp_backbone/runtime/preemption.py
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
POLL_SECONDS = 0.1
SAME_REQUEST_SECONDS = 0.5
LOCALHOST = '127.0.0.1'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('--agent', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('processes', type=int, metavar='PROCESSES')
    parser.add_argument('script', metavar='SCRIPT')
    parser.add_argument('arguments', nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    if args.processes < 1:
        parser.error(f'the number of processes is {args.processes}, wanted a positive integer')
    return args


def run(args: argparse.Namespace) -> int:
    """Starts torchrun and waits for it."""
    if args.agent:
        run_agent(args)
        return 0
    requests: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: requests.append(number))
    with tempfile.TemporaryDirectory(prefix='addp_run_') as folder:
        environment = {**os.environ, RUN_FOLDER: folder}
        environment.setdefault('ADDP_LAUNCH_ID', Path(folder).name)
        command = [sys.executable, __file__, '--agent', str(args.processes), args.script, *args.arguments]
        agent = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die_with_parent)
        code = wait(agent, Path(folder), requests)
        return PREEMPTED if (Path(folder) / MARKER_FILE).exists() else code


def wait(agent: subprocess.Popen, folder: Path, requests: list[int]) -> int:
    """Waits for torchrun; passes a signal on to each process once, and ends everything at a second signal."""
    told: set[str] = set()
    asked_at, taken = 0.0, 0
    while (code := agent.poll()) is None:
        time.sleep(POLL_SECONDS)
        if len(requests) > taken:
            if taken and time.monotonic() - asked_at > SAME_REQUEST_SECONDS:
                agent.kill()  # its processes end with it
                return 128 + requests[-1]
            asked_at = asked_at or time.monotonic()
            taken = len(requests)
        if requests:
            pids = {path.name for path in folder.iterdir() if path.name.isdigit()}
            for name in sorted(pids - told):
                pass_on(int(name), requests[0])
            if not pids and not told:  # a command that does not take part in this
                agent.terminate()
            told |= pids or {'agent'}
    return code if code >= 0 else 128 - code


def pass_on(pid: int, number: int) -> None:
    """Sends a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def run_agent(args: argparse.Namespace) -> None:
    """Becomes torchrun; on one machine its store gets a socket that listens on localhost only."""
    nodes, port = os.environ.get('NNODES', '1'), os.environ.get('PORT')
    address = os.environ.get('MASTER_ADDR', LOCALHOST)
    from torch.distributed import TCPStore
    from torch.distributed.run import main

    store = None
    if nodes == '1':
        # Several runs side by side: a free port each. The store that torchrun makes for this port is then this one.
        listener = socket.create_server((LOCALHOST, int(port or 0)))
        address, port = LOCALHOST, str(listener.getsockname()[1])
        store = TCPStore(
            LOCALHOST, int(port), is_master=True, multi_tenant=True, wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )  # fmt: skip
        if sys.platform == 'linux':
            os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    main(
        [
            f'--nnodes={nodes}',
            f'--node_rank={os.environ.get("NODE_RANK", "0")}',
            f'--master_addr={address}',
            f'--master_port={port or 29500}',
            f'--nproc_per_node={args.processes}',
            f'--max_restarts={os.environ.get("MAX_RESTARTS", "0")}',
            args.script,
            *args.arguments,
        ]
    )
    del store


def die_with_parent() -> None:
    """Asks Linux to kill this process when the one that started it ends."""
    if sys.platform == 'linux':
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
