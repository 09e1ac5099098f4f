"""Plans: commands with what each needs, where each writes, and the mark that a finished one leaves.

:mod:`experiments.engine` runs a plan on this machine, :mod:`experiments.slurm` writes the script that submits the same
plan to a cluster; ``tools/quickstart.py`` and ``tools/reproduce.py`` are the commands.

A task runner such as doit keeps what has finished in a database that it writes when it ends, so a killed run would
forget its finished stages; and it has no remaining time read from training logs, no forks that share their imports, no
Slurm script and no end of its commands with a killed parent, which are most of these files. So the engine stays ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
OWN_FOLDER = '{here}'  # stands for a stage's own folder in its command
FINISHED_FILE, LOG_FILE = 'finished.json', 'log.txt'
CPUS_PER_TASK = 8  # under Slurm: the workers that read data
_DIGITS = 10
# Scripts that start several processes, and after how many arguments their number stands.
_DISTRIBUTED = {
    'tools/train.py': ('tools/dist_train.sh', 1),
    'tools/test.py': ('tools/dist_test.sh', 2),
    'tools/generate.py': ('tools/dist_generate.sh', 2),
}


class RequestError(ValueError):
    """What was asked for cannot be done; the message says what to change."""


class StageError(RuntimeError):
    """A stage failed; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Cost:
    """What a stage takes.

    Attributes:
        gpu_hours: An estimate.
        disk_gb: An estimate of what it leaves on disk.
        basis: Where ``gpu_hours`` comes from.
    """

    gpu_hours: float = 0.0
    disk_gb: float = 0.0
    basis: str = ''

    def __str__(self) -> str:
        """', about ... GPU hours' and where the estimate comes from; '' without one."""
        return f', about {self.gpu_hours:g} GPU hours ({self.basis}; not measured)' if self.gpu_hours else ''


FREE = Cost()


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: What people see; unique among the stages of a plan that have no folder of their own.
        seconds: About how long it takes, for the remaining time; scaled by how long the stages before it took.
        command: Arguments for Python, the first a script of ``tools/``.
        outputs: Files that exist once it has finished.
        needs: Stages that have to finish first.
        folder: Its own folder, named after the command and its inputs (:meth:`Plan.add`); None for a stage that writes
            to fixed paths.
        num_processes: As many as GPUs; 1 for a command that uses one.
        uses_gpu: Whether a cluster has to give it GPUs.
        cost: What it takes.
    """

    name: str
    seconds: float
    command: tuple[str, ...]
    outputs: tuple[Path, ...] = ()
    needs: tuple[Stage, ...] = ()
    folder: Path | None = None
    num_processes: int = 1
    uses_gpu: bool = False
    cost: Cost = FREE

    @property
    def fingerprint(self) -> str:
        """Identifies the command: a stage whose command changed is run again."""
        return hashlib.sha256(json.dumps(self.command).encode()).hexdigest()

    def file(self, name: str = '') -> Path:
        """A file in the stage's own folder; the folder for no name.

        Raises:
            ValueError: If it has none.
        """
        if self.folder is None:
            raise ValueError(f'stage {self.name} has no folder of its own')
        return self.folder / name

    def log_file(self, work_dir: Path) -> Path:
        """Where its output goes."""
        return self.folder / LOG_FILE if self.folder else work_dir / 'logs' / f'{self.name}.log'

    def mark_file(self, work_dir: Path) -> Path:
        """What says that it has finished."""
        return self.folder / FINISHED_FILE if self.folder else work_dir / 'finished' / f'{self.name}.json'

    def mark(self, seconds: float | None = None, at: float | None = None) -> str:
        """The contents of the mark.

        Args:
            seconds: How long its last run took; earlier runs of a training that was interrupted are not included.
            at: When it finished, in seconds since 1970.
        """
        record = dict(
            command=self.command, processes=self.num_processes, fingerprint=self.fingerprint, seconds=seconds, at=at
        )
        return json.dumps(record, ensure_ascii=False) + '\n'

    def read_mark(self, work_dir: Path) -> dict[str, Any] | None:
        """The mark's contents, or None if this command has not finished or an output is missing.

        The name of a folder of its own already identifies the command and its inputs, so that the mark need only exist.
        At fixed paths the mark has to be of this command and to say when it finished (earlier versions did not).
        """
        path = self.mark_file(work_dir)
        if not path.is_file() or not all(output.exists() for output in self.outputs):
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
        if self.folder:
            return record
        return record if record.get('fingerprint') == self.fingerprint and record.get('at') else None

    @property
    def finished(self) -> bool:
        """Whether the command of a stage with its own folder has ended well, in whatever run."""
        return self.read_mark(self.file()) is not None

    def shell_command(self, python: str) -> list[str]:
        """For a shell in the repository's root.

        Args:
            python: The interpreter.
        """
        if self.num_processes == 1:
            return [python, *self.command]
        script, position = _DISTRIBUTED[self.command[0]]
        first, rest = self.command[1 : 1 + position], self.command[1 + position :]
        return [script, *first, str(self.num_processes), *rest]

    def slurm_command(self, python: str) -> list[str]:
        """For a job script, whose tasks are the processes."""
        command = list(self.command)
        if self.num_processes > 1:
            position = 1 + _DISTRIBUTED[command[0]][1]
            command[position:position] = ['--launcher', 'slurm']
        return ['srun', f'--cpus-per-task={CPUS_PER_TASK}', '--kill-on-bad-exit=1', python, '-u', *command]


@dataclass
class Plan:
    """Stages with folders of their own, in an order in which they can run.

    The folder's name ends in a checksum of the command, which names the folders of earlier stages. So a changed command
    (or checkpoint) means another folder, there and in all stages that build on it: what another command made is never
    taken for this one's, and going back to the former command finds its results again.

    Attributes:
        work_dir: Above all folders.
        stages: Each after those that it needs.
        evaluations: The stage whose file fills a row of the table, by (initialisation, task).
    """

    work_dir: Path
    stages: list[Stage] = field(default_factory=list)
    evaluations: dict[tuple[str, str], Stage] = field(default_factory=dict)

    def add(
        self,
        name: str,
        tool: str,
        positional: Sequence[object],
        options: Sequence[object] = (),
        *,
        needs: Sequence[Stage] = (),
        num_processes: int = 1,
        uses_gpu: bool = True,
        cost: Cost = FREE,
        identity: str = '',
    ) -> Stage:
        """Adds a stage, or finds the one that is the same.

        Args:
            name: Folder below the work dir, without the checksum.
            tool: File of ``tools/`` without its ending.
            positional: Arguments that are no options; ``OWN_FOLDER`` stands for the stage's folder, here and in
                ``options``.
            options: The other arguments.
            needs: Stages that have to finish first.
            num_processes: As in :class:`Stage`.
            uses_gpu: As in :class:`Stage`.
            cost: As in :class:`Stage`.
            identity: Checksum of inputs that may change under the same name.
        """
        words = [[str(word) for word in group] for group in (positional, options)]
        text = json.dumps([tool, num_processes, *words, identity], ensure_ascii=False)
        for folder in (self.work_dir, REPOSITORY):  # both may move
            text = text.replace(f'{folder}/', '')
        folder = self.work_dir / f'{name}-{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}'
        known = next((stage for stage in self.stages if stage.folder == folder), None)
        if known is not None:
            return known
        arguments = [word.replace(OWN_FOLDER, str(folder)) for group in words for word in group]
        stage = Stage(
            name,
            seconds=3600 * cost.gpu_hours / num_processes,
            command=(f'tools/{tool}.py', *arguments),
            needs=tuple(needs),
            folder=folder,
            num_processes=num_processes,
            uses_gpu=uses_gpu,
            cost=cost,
        )
        self.stages.append(stage)
        return stage

    @property
    def unfinished(self) -> list[Stage]:
        """What is left to do."""
        return [stage for stage in self.stages if not stage.finished]


def finished_seconds(stage: Stage, work_dir: Path) -> float | None:
    """How long the stage took, or None if it has not finished."""
    record = stage.read_mark(work_dir)
    return record['seconds'] if record else None
