"""A run of generation into a folder, by one or several processes, that can be cut anywhere and started again.

Work is dealt out in fixed blocks of a batch size, so that an image is always computed beside the same others, whichever
process does it and however often the run was cut: with the same batch size the files are the same to the bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from addp_backbone.files.atomic import replace_file
from addp_backbone.files.images import write_png
from pretrain.data.figures import SHEET_FILE, contact_sheet, grey_out, to_pictures
from pretrain.generation.sampling import Sampling, image_generator
from pretrain.generation.trajectory import generate, trajectory
from pretrain.networks.addp import ADDP

SETTINGS_FILE = 'generation.json'
MAX_SHEET_IMAGES = 64
MAX_STEP_COLUMNS = 10
_POLL_S = 0.5

# Variables that say which process this is, by who started it.
_LAUNCHERS = {
    'pytorch': ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'),
    'slurm': ('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS'),
}

Progress = Callable[[Iterable[range], int], Iterable[range]]


@dataclass(frozen=True)
class Process:
    """One of the processes that share a run.

    Attributes:
        rank: 0-based.
        local_rank: Among those of this machine.
        count: Number of processes.
    """

    rank: int = 0
    local_rank: int = 0
    count: int = 1

    @classmethod
    def of_launcher(cls, launcher: str) -> Process:
        """Which process this is: 'none' (the only one), 'pytorch' (torchrun) or 'slurm'.

        Raises:
            ValueError: If the launcher's variables are not set.
        """
        if launcher == 'none':
            return cls()
        missing = [name for name in _LAUNCHERS[launcher] if name not in os.environ]
        if missing:
            raise ValueError(
                f'--launcher {launcher} but {", ".join(missing)} are not set: start the processes by '
                'tools/dist_generate.sh CONFIG CKPT PROCESSES, or leave --launcher out'
            )
        return cls(*(int(os.environ[name]) for name in _LAUNCHERS[launcher]))


def image_path(out: Path, index: int) -> Path:
    """Where image ``index`` lies."""
    return out / f'{index:05d}.png'


def fingerprint(model: ADDP) -> str:
    """A checksum of the weights that images depend on: ADDP's and the tokenizer's."""
    digest = hashlib.sha256()
    for part in (model, model.tokenizer):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def claim_folder(out: Path, settings: Mapping[str, Any]) -> None:
    """Notes a run's settings in its folder, or compares them with those of the run that began it.

    Args:
        out: The folder; made if missing.
        settings: All that the images depend on but their number; JSON types.

    Raises:
        ValueError: If the folder's images were made with other settings.
    """
    path = out / SETTINGS_FILE
    settings = json.loads(json.dumps(settings))
    if path.exists():
        before = json.loads(path.read_text(encoding='utf-8'))
        changed = [
            f'{name}: {before.get(name)!r}, now {settings.get(name)!r}'
            for name in sorted({*before, *settings})
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise ValueError(
                f'{out} holds images of a run with other settings ({"; ".join(changed)}): give another folder, '
                'or the same settings to go on with that run'
            )
    elif any(image_path(out, index).exists() for index in range(2)):
        raise ValueError(f'{out} holds images but no {SETTINGS_FILE} that says how they were made: give another folder')
    else:
        replace_file(path, json.dumps(settings, indent=2) + '\n')


def open_blocks(out: Path, num_images: int, batch_size: int, process: Process) -> list[range]:
    """This process's share of the blocks that lack a file."""
    blocks = [range(first, min(first + batch_size, num_images)) for first in range(0, num_images, batch_size)]
    return [
        block
        for block in blocks[process.rank :: process.count]
        if not all(image_path(out, index).exists() for index in block)
    ]


def write_images(
    model: ADDP,
    out: Path,
    num_images: int,
    seed: int,
    sampling: Sampling,
    batch_size: int,
    process: Process = Process(),
    progress: Progress | None = None,
) -> int:
    """Generates this process's share of the images that are not there yet.

    Args:
        model: Runs under the autocast around.
        out: An existing folder.
        num_images: Of the whole run.
        seed: Image i depends on it and on i only.
        sampling: How to draw.
        batch_size: Images computed together; also the unit in which the work is dealt out.
        process: Which of the run's processes this is.
        progress: Wraps the blocks, given the number of their images.

    Returns:
        Number of images that were computed.
    """
    blocks = open_blocks(out, num_images, batch_size, process)
    total = sum(map(len, blocks))
    for block in progress(blocks, total) if progress else blocks:
        images = generate(
            model,
            len(block),
            sampling.steps,
            sampling.schedule,
            sampling.temperature,
            [image_generator(seed, index) for index in block],
            dynamic=sampling.dynamic,
            top_p=sampling.top_p,
        )
        for index, picture in zip(block, to_pictures(images), strict=True):
            if not image_path(out, index).exists():
                write_png(picture, image_path(out, index))
    return total


def finish(out: Path, num_images: int, process: Process) -> None:
    """The first process waits for the others' images, writes the contact sheet and removes what cut runs left behind."""
    if process.rank:
        return
    for index in range(num_images):
        while not image_path(out, index).exists():  # torchrun ends us if the process that owes it has failed
            time.sleep(_POLL_S)
    for leftover in out.glob('.*.part'):
        leftover.unlink(missing_ok=True)
    pictures = []
    for index in range(min(num_images, MAX_SHEET_IMAGES)):
        with Image.open(image_path(out, index)) as picture:
            pictures.append(picture.convert('RGB'))
    write_png(contact_sheet(pictures), out / SHEET_FILE)


def steps_figure(model: ADDP, seed: int, index: int, sampling: Sampling) -> Image.Image:
    """How image ``index`` emerges: each step's image, and below it with the places that are still open in grey.

    At most ten steps, evenly spaced, the last one among them.
    """
    steps = list(trajectory(model, 1, sampling, [image_generator(seed, index)]))
    columns = min(len(steps), MAX_STEP_COLUMNS)
    shown = [-(-(column + 1) * len(steps) // columns) - 1 for column in range(columns)]
    images = torch.cat([steps[number].images for number in shown]).clamp(0, 1)
    masks = torch.cat([steps[number].mask for number in shown])
    captions = [f'step {number + 1}' for number in shown] + [f'{int(mask.sum())} open' for mask in masks]
    return contact_sheet(to_pictures(torch.cat((images, grey_out(images, masks)))), columns, captions)
