"""A run of generation into a folder by one or several processes, which can be interrupted anywhere and resumed.

Work is divided into fixed blocks of one batch, so that an image is always computed together with the same others, in
whichever process and after any number of interruptions: with the same batch size the files are equal bit by bit.
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
from pretrain.data.figures import SHEET_FILE, contact_sheet, grey_out, to_pil
from pretrain.generation.sampling import Sampling, image_generator
from pretrain.generation.trajectory import generate, trajectory
from pretrain.networks.addp import ADDP

SETTINGS_FILE = 'generation.json'
MAX_SHEET_IMAGES = 64
MAX_STEP_COLUMNS = 10
_POLL_S = 0.5

# Environment variables that identify a process, by launcher.
_LAUNCHERS = {
    'pytorch': ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'),
    'slurm': ('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS'),
}

Progress = Callable[[Iterable[range], int], Iterable[range]]


@dataclass(frozen=True)
class Process:
    """One of the processes that share a run.

    Attributes:
        rank: Index among all processes, from 0.
        local_rank: Index among the processes of this machine, from 0.
        count: Number of processes of the run.
    """

    rank: int = 0
    local_rank: int = 0
    count: int = 1

    @classmethod
    def of_launcher(cls, launcher: str) -> Process:
        """Reads the identity of this process from its launcher: 'none' (the only one), 'pytorch' (torchrun) or 'slurm'.

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
    """The path of image ``index``."""
    return out / f'{index:05d}.png'


def fingerprint(model: ADDP) -> str:
    """A checksum of the weights that images depend on: ADDP's and the tokenizer's."""
    digest = hashlib.sha256()
    for part in (model, model.tokenizer):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def claim_folder(out: Path, settings: Mapping[str, Any], computed: Mapping[str, Any] | None = None) -> str | None:
    """Writes the settings of a run into its folder, or compares them with those of the run that began it.

    Args:
        out: The folder; created if missing.
        settings: Everything that the images depend on, except their number; JSON types.
        computed: What their last bits depend on besides: batch size, threads, device, version of torch; JSON types.

    Returns:
        What differs in ``computed``, in which case images that are still missing will not be bit for bit those that the
        run would have made without the interruption; None if nothing does.

    Raises:
        ValueError: If the folder's images were made with other settings.
    """
    path = out / SETTINGS_FILE
    wanted = json.loads(json.dumps(settings))
    if path.exists():
        before = json.loads(path.read_text(encoding='utf-8'))
        computed_before = before.pop('computed', {})
        changed = _differences(before, wanted)
        if changed:
            raise ValueError(
                f'{out} holds images of a run with other settings ({"; ".join(changed)}): give another folder, '
                'or the same settings to go on with that run'
            )
        return '; '.join(_differences(computed_before, dict(computed or {}))) or None
    if any(image_path(out, index).exists() for index in range(2)):
        raise ValueError(f'{out} holds images but no {SETTINGS_FILE} that says how they were made: give another folder')
    replace_file(path, json.dumps(dict(wanted, computed=dict(computed or {})), indent=2) + '\n')
    return None


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f'{name}: {before.get(name)!r}, now {now.get(name)!r}'
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def open_blocks(out: Path, num_images: int, batch_size: int, process: Process) -> list[range]:
    """Returns this process's share of the blocks with a missing file."""
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
    """Generates this process's share of the missing images.

    Args:
        model: ADDP; runs under the surrounding autocast.
        out: An existing folder.
        num_images: Number of images of the whole run.
        seed: Seed of the run; image i depends on it and on i only.
        sampling: How tokens are sampled.
        batch_size: Number of images computed together; also the unit in which work is divided.
        process: Identity of this process.
        progress: Wraps the iterator over blocks, for example in a progress bar; its second argument is the number of
            images. None shows none.

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
        for index, image in zip(block, to_pil(images), strict=True):
            if not image_path(out, index).exists():
                write_png(image, image_path(out, index))
    return total


def finish(out: Path, num_images: int, process: Process) -> None:
    """In the first process: waits for all images, writes the contact sheet, removes leftovers of interrupted runs."""
    if process.rank:
        return
    for index in range(num_images):
        while not image_path(out, index).exists():  # torchrun stops this process if the one that owes the image failed
            time.sleep(_POLL_S)
    for leftover in out.glob('.*.part'):
        leftover.unlink(missing_ok=True)
    images = []
    for index in range(min(num_images, MAX_SHEET_IMAGES)):
        with Image.open(image_path(out, index)) as image:
            images.append(image.convert('RGB'))
    write_png(contact_sheet(images), out / SHEET_FILE)


def steps_figure(model: ADDP, seed: int, index: int, sampling: Sampling) -> Image.Image:
    """Shows how image ``index`` emerges: the image after each step, and below it with its masked patches in grey.

    Shows at most ten steps, evenly spaced, including the last one.
    """
    steps = list(trajectory(model, 1, sampling, [image_generator(seed, index)]))
    columns = min(len(steps), MAX_STEP_COLUMNS)
    shown = [-(-(column + 1) * len(steps) // columns) - 1 for column in range(columns)]
    images = torch.cat([steps[number].images for number in shown]).clamp(0, 1)
    masks = torch.cat([steps[number].mask for number in shown])
    captions = [f'step {number + 1}' for number in shown] + [f'{int(mask.sum())} open' for mask in masks]
    return contact_sheet(to_pil(torch.cat((images, grey_out(images, masks)))), columns, captions)
