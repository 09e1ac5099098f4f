"""A shell script that submits a plan's stages to Slurm, each after those that it needs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from experiments.stages import CPUS_PER_TASK, FINISHED_FILE, REPOSITORY, Plan, RequestError, Stage

END_OF_JOB = 'END_OF_JOB'


def submit_script(
    plan: Plan, python: str, table_command: Sequence[str], sbatch_options: str = '', gpus_per_node: int = 8
) -> str:
    """Composes the script: ``bash`` submits it, and prints the jobs' numbers.

    Finished stages are left out. A job that finds itself finished ends at once, so that submitting twice does no harm.

    Args:
        plan: What to run.
        python: The interpreter on the cluster's machines.
        table_command: Prints and writes the table, from this process's folder; runs after all others, whether they went
            well or not.
        sbatch_options: More of sbatch, for every job, as in a shell: ``'--partition=gpu --time=72:00:00'``.
        gpus_per_node: GPUs of a machine.

    Raises:
        RequestError: If a stage would fill its last machine in part.
    """
    lines = ['#!/usr/bin/env bash', '# Submits what is left to do: run it with bash.', 'set -euo pipefail', '']
    jobs: dict[str, str] = {}
    for stage in plan.unfinished:
        if stage.num_processes > gpus_per_node and stage.num_processes % gpus_per_node:
            raise RequestError(f'--gpus {stage.num_processes} must be a multiple of --gpus-per-node {gpus_per_node}')
        variable = f'job_{len(jobs) + 1}'
        jobs[str(stage.folder)] = variable
        after = [f'${jobs[str(need.folder)]}' for need in stage.needs if not need.finished]
        lines += _job(stage, variable, after, python, sbatch_options, gpus_per_node)
    dependency = ['--dependency=afterany:' + ':'.join(f'${variable}' for variable in jobs.values())] if jobs else []
    head = ' '.join(
        [
            'sbatch',
            '--parsable',
            '--job-name=table',
            '--ntasks=1',
            f'--output={shlex.quote(str(plan.work_dir))}/table-%j.txt',
            *dependency,
            sbatch_options,
        ]
    ).rstrip()
    lines += [
        f"job_table=$({head} <<'{END_OF_JOB}'",
        '#!/usr/bin/env bash',
        f'cd {shlex.quote(str(Path.cwd()))}',
        shlex.join(table_command),
        END_OF_JOB,
        ')',
        'echo "table: job $job_table"',
    ]
    return '\n'.join(lines) + '\n'


def _job(
    stage: Stage, variable: str, after: list[str], python: str, sbatch_options: str, gpus_per_node: int
) -> list[str]:
    folder, mark = shlex.quote(str(stage.file())), shlex.quote(str(stage.file(FINISHED_FILE)))
    words = [
        'sbatch',
        '--parsable',
        f'--job-name={stage.name.rpartition("/")[2]}',
        f'--output={folder}/slurm-%j.txt',
        '--open-mode=append',
        f'--ntasks={stage.num_processes}',
        f'--cpus-per-task={CPUS_PER_TASK}',
    ]
    if stage.uses_gpu:
        on_node = min(stage.num_processes, gpus_per_node)
        words += [f'--gpus-per-node={on_node}', f'--ntasks-per-node={on_node}']
    words += [f'--dependency=afterok:{":".join(after)}', '--kill-on-invalid-dep=yes'] if after else []
    head = ' '.join([*words, sbatch_options]).rstrip()
    text = shlex.quote(stage.mark().removesuffix('\n'))
    return [
        f'# {stage.name}{stage.cost}',
        f'mkdir -p {folder}',
        f"{variable}=$({head} <<'{END_OF_JOB}'",
        '#!/usr/bin/env bash',
        'set -euo pipefail',
        f'cd {shlex.quote(str(REPOSITORY))}',
        f'if [[ -f {mark} ]]; then exit 0; fi',
        shlex.join(stage.slurm_command(python)),
        f'echo {text} > {mark}.part && mv {mark}.part {mark}',
        END_OF_JOB,
        ')',
        f'echo "{stage.name}: job ${variable}"',
        '',
    ]
