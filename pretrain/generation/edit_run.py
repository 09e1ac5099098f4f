"""A run of editing: results are written batch by batch, and a run with the same arguments goes on where one was cut.

Each PNG carries a digest of all that it depends on, its batch included, so that a file is kept only if computing it
again would give the same bits.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addp_backbone.files.atomic import remove_abandoned_parts, replace_file
from addp_backbone.files.image_limits import open_image
from addp_backbone.files.images import DECODING_ERRORS, encode_png, write_png
from pretrain.data.figures import grey_out, to_pil, to_tensor
from pretrain.generation.editing import Edit, draw_masks, edit, edit_figure
from pretrain.generation.sampling import Sampling
from pretrain.networks.addp import ADDP

BATCH_SIZE = 8  # results computed together; a constant, as the last bits depend on it
STAMP = 'addp-edit'


@dataclass(frozen=True)
class EditTask:
    """What is drawn anew, and how.

    Attributes:
        image: RGB image of the model's size.
        mask: (L,) bool, or a ratio, as for :func:`pretrain.generation.editing.edit`.
        num_results: Number of results.
        seed: Seed of all random draws.
        sampling: How tokens are sampled.
        paste: Whether the image's own pixels are put back.
        precision: The precision that the model computes in, for the digest.
        weights: Checksum of the model's weights (:func:`pretrain.generation.run.fingerprint`), for the digest.
    """

    image: Image.Image
    mask: Tensor | float
    num_results: int
    seed: int
    sampling: Sampling
    paste: bool = False
    precision: str = 'fp32'
    weights: str = ''


class Outcome(NamedTuple):
    """What a run wrote.

    Attributes:
        done: The results of all batches, as they are in the files.
        num_kept: How many results were there already.
        num_replaced: How many files of other arguments were overwritten.
    """

    done: Edit
    num_kept: int
    num_replaced: int


def write_edits(model: ADDP, task: EditTask, out: Path) -> Outcome:
    """Writes ``before.png``, ``result_NN.png``, ``mask_NN.png`` and, at the end, ``edit.png``.

    Args:
        model: ADDP on its device; runs under the surrounding autocast.
        task: What to do.
        out: Folder; made if it is missing.
    """
    before = to_tensor([task.image])
    masks = draw_masks(model, task.mask, task.num_results, task.seed)
    num_kept = num_replaced = 0
    remove_abandoned_parts(out)
    write_png(task.image, out / 'before.png')
    for batch, stamp in _stamps(model, task):
        files = [file for index in batch for file in _files(out, index)]
        found = [_stamp_of(file) for file in files]
        if all(one == stamp for one in found):
            num_kept += len(batch)
            continue
        num_replaced += sum(one not in (None, stamp) for one in found) // 2
        done = edit(model, task.image, task.mask, len(batch), task.seed, task.sampling, task.paste, first=batch.start)
        for index, result, masked in zip(batch, to_pil(done.results), to_pil(grey_out(before, done.mask)), strict=True):
            for file, image in zip(_files(out, index), (result, masked), strict=True):
                replace_file(file, with_text(encode_png(image), STAMP, stamp))
    results = []
    for index in range(task.num_results):
        with Image.open(_files(out, index)[0]) as image:
            results.append(image.convert('RGB'))
    done = Edit(before, masks, to_tensor(results))
    write_png(edit_figure(done), out / 'edit.png')
    return Outcome(done, num_kept, num_replaced)


def with_text(png: bytes, keyword: str, text: str) -> bytes:
    """A PNG file's content with a text chunk behind its header; both Latin-1."""
    content = b'tEXt' + keyword.encode('latin-1') + b'\0' + text.encode('latin-1')
    header_end = 8 + 25  # signature, IHDR
    size, checksum = len(content) - 4, zlib.crc32(content)
    return png[:header_end] + struct.pack('>I', size) + content + struct.pack('>I', checksum) + png[header_end:]


def _files(out: Path, index: int) -> tuple[Path, Path]:
    return out / f'result_{index:02d}.png', out / f'mask_{index:02d}.png'


def _stamp_of(path: Path) -> str | None:
    """The digest in a whole PNG; None if there is no file, '' if there is none in it or it is damaged."""
    if not path.is_file():
        return None
    try:
        with open_image(path) as image:
            image.load()
            return str(image.info.get(STAMP, ''))
    except DECODING_ERRORS:
        return ''


def _stamps(model: ADDP, task: EditTask) -> Iterator[tuple[range, str]]:
    """The batches, and a digest of what each depends on."""
    pixels = np.asarray(task.image)
    mask: Any = task.mask.int().tolist() if isinstance(task.mask, Tensor) else task.mask
    device = model.pixel_mean.device
    common = dict(
        asdict(task.sampling),
        weights=task.weights,
        image=hashlib.sha256(pixels.tobytes()).hexdigest(),
        mask=mask,
        seed=task.seed,
        paste=task.paste,
        precision=task.precision,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type,
    )
    for start in range(0, task.num_results, BATCH_SIZE):
        batch = range(start, min(start + BATCH_SIZE, task.num_results))
        text = json.dumps(dict(common, batch=[batch.start, batch.stop]), sort_keys=True)
        yield batch, hashlib.sha256(text.encode()).hexdigest()
