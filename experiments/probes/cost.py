"""What the features of a backbone cost: parameters, arithmetic, time and memory at the size of the probe."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import io
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from addp_backbone.files.atomic import replace_file
from experiments.probes.features import IMAGES_PER_FILE, Extraction

COSTS_JSON, COSTS_CSV = 'costs.json', 'costs.csv'
_PASSES = 2  # the quickest counts
_BYTES_PER_MIB = 2**20


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)  # of shapes


# torch's table of operators has the fused attention of CUDA, not that of the CPU.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@dataclass(frozen=True)
class FeatureCost:
    """The cost of all blocks of one backbone, frozen.

    Attributes:
        backbone: Its name.
        digest: Of the backbone and its weights.
        size: (width, height) of the images, in pixels.
        parameters: Of the trunk: patch embedding, positions and blocks, no head.
        giga_flops: A forward pass of one image, counted by torch; a multiplication and an addition are two.
        milliseconds: Wall time an image: reading, resizing and the forward pass, in batches of 8.
        peak_mib: What the backbone and the pass of one batch add to the memory of the process (CUDA: allocated by
            torch; else resident); None where the system does not tell.
        device: Where it was measured, with the number of CPU threads.
        precision: 'fp32' or 'bf16'.
    """

    backbone: str
    digest: str
    size: tuple[int, int]
    parameters: int
    giga_flops: float
    milliseconds: float
    peak_mib: float | None
    device: str
    precision: str


def measure_cost(name: str, digest: str, extraction: Extraction, images: Sequence[Path]) -> FeatureCost:
    """Measures one backbone.

    Args:
        name: Of the backbone.
        digest: Of it and its weights.
        extraction: How its features are computed; of its last block, so that all are built.
        images: Some images; the first 8 are used.
    """
    batch, device, size = list(images[:IMAGES_PER_FILE]), extraction.device, extraction.size
    before = _reset_peak(device)
    backbone = extraction.make_backbone(extraction.blocks).to(device)
    seconds = []
    for _ in range(_PASSES):
        started = time.perf_counter()
        extraction.compute(backbone, batch)  # its check for finite values waits for the device
        seconds.append(time.perf_counter() - started)
    peak = _peak(device)
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        backbone(torch.zeros(1, 3, size[1], size[0], device=device))
    return FeatureCost(
        name,
        digest,
        size,
        sum(parameter.numel() for parameter in backbone.parameters()),
        counter.get_total_flops() / 1e9,
        1000 * min(seconds) / len(batch),
        None if before is None or peak is None else (peak - before) / _BYTES_PER_MIB,
        device_name(device),
        extraction.precision,
    )


def write_costs(out: Path, costs: Sequence[FeatureCost]) -> None:
    """Writes ``costs.json`` and ``costs.csv``, rounded as they are known."""
    records = [_rounded(cost) for cost in costs]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator='\n')
    writer.writeheader()
    for cost, record in zip(costs, records, strict=True):
        writer.writerow({**record, 'size': f'{cost.size[0]}x{cost.size[1]}'})
    replace_file(out / COSTS_CSV, text.getvalue())
    replace_file(out / COSTS_JSON, json.dumps(records, indent=1, ensure_ascii=False) + '\n')


def read_costs(out: Path) -> list[FeatureCost]:
    """What an earlier run measured; none if there is no whole file."""
    try:
        records = json.loads((out / COSTS_JSON).read_text(encoding='utf-8'))
        return [FeatureCost(**{**record, 'size': tuple(record['size'])}) for record in records]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def known_cost(out: Path, name: str, digest: str, extraction: Extraction) -> FeatureCost | None:
    """What an earlier run into the same folder measured; arguments as for :func:`measure_cost`."""
    wanted = (name, digest, extraction.size, extraction.precision, device_name(extraction.device))
    return next(
        (c for c in read_costs(out) if (c.backbone, c.digest, c.size, c.precision, c.device) == wanted),
        None,
    )


def _rounded(cost: FeatureCost) -> dict[str, object]:
    record = asdict(cost)
    record.update(giga_flops=round(cost.giga_flops, 3), milliseconds=round(cost.milliseconds, 2))
    if cost.peak_mib is not None:
        record['peak_mib'] = round(cost.peak_mib, 1)
    return record


def device_name(device: str) -> str:
    """The name of a GPU, else the device and the number of CPU threads."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f'{device}, {threads} thread{"s" * (threads > 1)}'


def _reset_peak(device: str) -> int | None:
    """Forgets the peak so far; returns the bytes in use, None where the system cannot tell."""
    if torch.device(device).type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform != 'linux':
        return None
    with contextlib.suppress(AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process keeps would hide new use
    try:
        Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
        return int(Path('/proc/self/statm').read_text(encoding='ascii').split()[1]) * resource.getpagesize()
    except OSError:
        return None


def _peak(device: str) -> int | None:
    if torch.device(device).type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path('/proc/self/status').read_text(encoding='ascii')
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith('VmHWM')), None)
