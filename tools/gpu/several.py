"""Check 15: torchrun with one process: DDP with SyncBN, FSDP, and an FSDP run that resumes.

The parent starts tools/torchrun.py with this file, which trains in the process group (NCCL on a card, else gloo).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from mmengine.config import Config

from tools.gpu.report import Report
from tools.gpu.stages import ROOT, Training, load_stage, train_stage, weights_differ, write_data

ITERS, BATCH_SIZE = 4, 2
NOISE_FACTOR, LEAST_NOISE = 3, 1e-7


def torchrun(device: torch.device, report: Report) -> None:
    """Check 15."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, str(ROOT / 'tools' / 'torchrun.py'), '1', __file__, name]
        environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        results = Path(name) / 'results.json'
        if done.returncode or not results.exists():
            last = (done.stderr.strip().splitlines() or ['no message'])[-1]
            report.note('output', (done.stdout + done.stderr)[-5000:])
            report.require(False, f'exit code {done.returncode}: {last[:300]}')
            return
        found = json.loads(results.read_text(encoding='utf-8'))
    for key, value in found.items():
        report.note(key, value)
    losses = torch.tensor([found[run] for run in ('DDP', 'FSDP')])
    report.require(bool(losses.isfinite().all()), f'losses are not finite: {losses.tolist()}')
    report.at_most('resumed', found['resumed'], NOISE_FACTOR * found['noise'] + LEAST_NOISE)
    report.figure = f'{found["backend"]}: resumed {found["resumed"]:.1e}, noise {found["noise"]:.1e}'


def main(folder: Path) -> None:
    """The process that torchrun starts: trains and writes ``results.json``."""
    import torch.distributed as dist

    from addp_backbone.runtime.distributed import TIMEOUT_S, start_processes, stop_processes

    start_processes('pytorch', TIMEOUT_S)
    data = write_data(folder / 'data', 8)

    def train(name: str, sharded: bool, resume: Path | None = None) -> Training:
        cfg = load_stage('UperNet', data, folder / name, torch.float32, ITERS, BATCH_SIZE)
        cfg.launcher = 'pytorch'
        if sharded:
            cfg.merge_from_dict(Config.fromfile(ROOT / 'det_configs' / '_base_' / 'fsdp.py').to_dict())
        else:
            cfg.model.decode_head.norm_cfg = dict(type='SyncBN')
        return train_stage(cfg, None if resume is None else str(resume))

    with_ddp = train('ddp', sharded=False)
    first, second = train('fsdp', sharded=True), train('again', sharded=True)
    resumed = train('resumed', sharded=True, resume=first.work_dir / f'iter_{ITERS // 2}.pth')
    results = dict(
        backend=dist.get_backend(),
        DDP=with_ddp.losses,
        FSDP=first.losses,
        noise=weights_differ(second, first),
        resumed=weights_differ(resumed, first),
    )
    (folder / 'results.json').write_text(json.dumps(results), encoding='utf-8')
    stop_processes()


if __name__ == '__main__':
    main(Path(sys.argv[1]))
