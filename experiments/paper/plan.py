"""Stages: commands in the order of their needs, each with a folder of its own that is named after the command.

The folder's name ends in a checksum of the command, which names the folders of earlier stages. So a changed command (or
checkpoint) means another folder, there and in all stages that build on it: what was made by another command is never
taken for this one's, and going back to the former command finds its results again. ``finished.json`` is written once
the command has ended well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.paper.recipes import FREE, REPOSITORY, Cost

HERE = '{here}'  # the stage's own folder, in its command
FINISHED_FILE = 'finished.json'
METRICS_FILE = 'metrics.json'
CPUS_PER_TASK = 8  # under Slurm: the workers that read data
_DIGITS = 10
_DISTRIBUTED = {'train': 'dist_train.sh', 'test': 'dist_test.sh', 'generate': 'dist_generate.sh'}


@dataclass(frozen=True)
class Stage:
    """A command of a tool.

    Attributes:
        name: For people; the folder's beginning.
        tool: File of tools/ without its ending.
        positional: Arguments that are no options.
        options: The others.
        folder: Where it writes.
        num_processes: As many as GPUs; 1 for tools that use one.
        uses_gpu: Whether it wants a GPU at all.
        needs: Stages that have to be finished before.
        cost: What it takes.
    """

    name: str
    tool: str
    positional: tuple[str, ...]
    options: tuple[str, ...]
    folder: Path
    num_processes: int = 1
    uses_gpu: bool = True
    needs: tuple[Stage, ...] = ()
    cost: Cost = FREE

    @property
    def finished(self) -> bool:
        """Whether the command has ended well, in whatever run."""
        return (self.folder / FINISHED_FILE).is_file()

    def command(self, python: str) -> list[str]:
        """For a shell in the repository's root.

        Args:
            python: The interpreter.
        """
        if self.num_processes == 1:
            return [python, f'tools/{self.tool}.py', *self.positional, *self.options]
        return [f'tools/{_DISTRIBUTED[self.tool]}', *self.positional, str(self.num_processes), *self.options]

    def slurm_command(self, python: str) -> list[str]:
        """For a job script, whose tasks are the processes."""
        launcher = ['--launcher', 'slurm'] if self.num_processes > 1 else []
        return [
            'srun',
            f'--cpus-per-task={CPUS_PER_TASK}',
            '--kill-on-bad-exit=1',
            python,
            '-u',
            f'tools/{self.tool}.py',
            *self.positional,
            *launcher,
            *self.options,
        ]


@dataclass
class Plan:
    """Stages in an order in which they can run.

    Attributes:
        work_dir: Above all folders.
        stages: Each after those that it needs.
        evaluations: The stage whose file fills a row, by (initialisation, task).
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
            tool: As in :class:`Stage`.
            positional: Likewise; ``HERE`` stands for the stage's folder, here and in ``options``.
            options: Likewise.
            needs: Likewise.
            num_processes: Likewise.
            uses_gpu: Likewise.
            cost: Likewise.
            identity: Of inputs that may change under the same name: their checksum.
        """
        words = [[str(word) for word in group] for group in (positional, options)]
        text = json.dumps([tool, num_processes, *words, identity], ensure_ascii=False)
        for folder in (self.work_dir, REPOSITORY):  # both may move
            text = text.replace(f'{folder}/', '')
        digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
        folder = self.work_dir / f'{name}-{digest}'
        known = next((stage for stage in self.stages if stage.folder == folder), None)
        if known is not None:
            return known
        first, rest = (tuple(word.replace(HERE, str(folder)) for word in group) for group in words)
        stage = Stage(name, tool, first, rest, folder, num_processes, uses_gpu, tuple(needs), cost)
        self.stages.append(stage)
        return stage

    @property
    def unfinished(self) -> list[Stage]:
        """What is left to do."""
        return [stage for stage in self.stages if not stage.finished]
