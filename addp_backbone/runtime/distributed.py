"""Joining and leaving the other processes of a run, with errors that name the host and the setting to change."""

from __future__ import annotations

import os
import socket
import subprocess
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.dist import is_distributed

from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.preemption import RUN_FOLDER
from addp_backbone.runtime.processes import die_with_parent

LAUNCHERS = ('none', 'pytorch', 'slurm')
TORCHRUN_VARIABLES = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
SLURM_VARIABLES = ('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS')  # rank, local rank, number of processes
INTERFACE_VARIABLES = ('GLOO_SOCKET_IFNAME', 'NCCL_SOCKET_IFNAME')
START_TIMEOUT_S = 300  # until all processes have joined
TIMEOUT_S = 1800  # of a collective operation; the slowest is an evaluation of one process that others wait for


def start_processes(launcher: str, timeout_s: float = TIMEOUT_S) -> int:
    """Joins the other processes of the run; on the CPU it makes the process group, as mmengine would ask for CUDA.

    Args:
        launcher: One of :data:`LAUNCHERS`.
        timeout_s: Seconds after which a collective operation fails that another process does not take part in.

    Returns:
        The number of processes.

    Raises:
        LaunchError: If the launcher did not set its environment variables, other machines cannot reach this one, or
            not all processes join within :data:`START_TIMEOUT_S`.
    """
    if launcher == 'none':
        return 1
    if launcher == 'slurm':
        _set_variables_from_slurm()
    missing = [name for name in TORCHRUN_VARIABLES if name not in os.environ]
    if missing:
        raise LaunchError(
            f'--launcher {launcher} but {", ".join(missing)} are not set; start the processes by tools/dist_train.sh '
            'CONFIG PROCESSES (torchrun) or tools/slurm_train.sh, or leave --launcher out'
        )
    if launcher == 'pytorch':
        die_with_parent()  # torchrun's processes would go on when it is killed
        if RUN_FOLDER in os.environ:  # tools/torchrun.py passes signals on to who is listed there
            (Path(os.environ[RUN_FOLDER]) / str(os.getpid())).touch()
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):  # mmengine warns where it has to choose
        os.environ.setdefault(name, os.environ.get('OMP_NUM_THREADS', '1'))
    check_interface()
    if torch.cuda.is_available():
        gpu = choose_gpu(launcher, int(os.environ['LOCAL_RANK']), torch.cuda.device_count())
        # mmengine reads the index of the GPU from these; for Slurm it sets the first from the second again.
        os.environ.update({'LOCAL_RANK': str(gpu), **({'SLURM_LOCALID': str(gpu)} if launcher == 'slurm' else {})})
    elif not is_distributed():
        join(min(START_TIMEOUT_S, timeout_s), timeout_s)
    return int(os.environ['WORLD_SIZE'])


def choose_gpu(launcher: str, local_rank: int, num_gpus: int) -> int:
    """The index of a process's GPU among those that it sees.

    Args:
        launcher: 'pytorch' or 'slurm'.
        local_rank: Index among the processes of this machine, from 0.
        num_gpus: Number of GPUs that this process sees, at least 1.

    Returns:
        The local rank; 0 where Slurm shows each task a GPU of its own (``--gpus-per-task=1``).

    Raises:
        LaunchError: If there are more processes than GPUs, which NCCL refuses.
    """
    if launcher == 'slurm' and num_gpus == 1:
        return 0
    if local_rank >= num_gpus:
        raise LaunchError(
            f'process {local_rank} of this machine (counted from 0) has no GPU: it sees {num_gpus}. Start at most '
            f'{num_gpus} processes a machine (see CUDA_VISIBLE_DEVICES), or hide the GPUs to train on the CPU: '
            'export CUDA_VISIBLE_DEVICES='
        )
    return local_rank


def is_first_process(launcher: str) -> bool:
    """Whether this is rank 0, also before the process group is made."""
    return launcher == 'none' or os.environ.get('RANK', '0') == '0'


def was_restarted() -> bool:
    """Whether torchrun (``--max-restarts``) started this process in place of one that had died."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')) > 0


def join(start_timeout_s: float, timeout_s: float) -> None:
    """Makes gloo's process group of torchrun's variables.

    Raises:
        LaunchError: If not all processes join in time.
    """
    rank, size = os.environ['RANK'], int(os.environ['WORLD_SIZE'])
    timeout = timedelta(seconds=start_timeout_s)
    try:
        store, *_ = next(dist.rendezvous('env://', timeout=timeout))
        # torchrun keeps its store over restarts: without a prefix a process may find its dead peer's address there.
        attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
        store = dist.PrefixStore(f'attempt_{attempt}', store)
        dist.init_process_group('gloo', store=store, rank=int(rank), world_size=size, timeout=timeout)
        dist.barrier()
    except RuntimeError as error:  # torch's DistError is one
        reason = str(error).strip().splitlines()[0]
        raise LaunchError(
            f'process {rank} of {size}, on host {socket.gethostname()}, could not join the others within '
            f'{start_timeout_s:g} s ({reason}). Were all started, with the same MASTER_ADDR and PORT '
            f'({os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]} here), and is that reachable? With several '
            f'networks, set {" and ".join(INTERFACE_VARIABLES)} on each host to the interface that the others reach, '
            'e.g. export GLOO_SOCKET_IFNAME=eth0'
        ) from error
    dist.set_timeout(timedelta(seconds=timeout_s))


def check_interface() -> None:
    """Refuses a run on several hosts whose name stands for this machine only: the others would wait for it in vain.

    Raises:
        LaunchError: If the host's name resolves to loopback addresses or not at all, and no interface is set.
    """
    nodes = int(os.environ['WORLD_SIZE']) // int(os.environ.get('LOCAL_WORLD_SIZE') or os.environ['WORLD_SIZE'])
    if nodes < 2 or torch.cuda.is_available() or 'GLOO_SOCKET_IFNAME' in os.environ:
        return
    host = socket.gethostname()
    try:
        addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, None)})
    except OSError as error:
        found = f'is not known ({error})'
    else:
        if not all(ip_address(address.partition('%')[0]).is_loopback for address in addresses):
            return
        found = f'stands for {", ".join(addresses)}, which only this machine reaches'
    names = ', '.join(name for _, name in socket.if_nameindex() if name != 'lo') or 'none'
    raise LaunchError(
        f'this run has {nodes} hosts, and the name of this one, {host}, {found}: mend /etc/hosts, or name the network '
        f'interface to use, export GLOO_SOCKET_IFNAME=... (for GPUs NCCL_SOCKET_IFNAME; there are: {names})'
    )


def stop_processes() -> None:
    """Leaves the process group after a run that went well."""
    if not is_distributed():
        return
    dist.barrier()
    dist.destroy_process_group()


def _set_variables_from_slurm() -> None:
    """Sets torchrun's variables from Slurm's; an address and a port that are set already stay.

    Raises:
        LaunchError: If this process was not started by srun, or the first host of the job cannot be asked for.
    """
    missing = [name for name in SLURM_VARIABLES if name not in os.environ]
    if missing:
        raise LaunchError(f'--launcher slurm but {", ".join(missing)} not set; start with tools/slurm_train.sh or srun')
    rank, local_rank, size = (os.environ[name] for name in SLURM_VARIABLES)
    os.environ.update(RANK=rank, LOCAL_RANK=local_rank, WORLD_SIZE=size)
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' in os.environ:
        return
    command = ['scontrol', 'show', 'hostnames', os.environ.get('SLURM_NODELIST', '')]
    try:
        hosts = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise LaunchError(
            f'the first host of this Slurm job cannot be asked for ({error}): export MASTER_ADDR with its address'
        ) from error
    os.environ['MASTER_ADDR'] = hosts[0]
