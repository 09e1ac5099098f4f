"""Check 16: images a second that one core reads and augments, by the configs' own pipelines, on generated shapes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope, init_default_scope

from tools.gpu.report import Report
from tools.gpu.stages import ROOT, load_stage, write_data

CONFIGS = {  # whose pipeline is timed: the stage whose data set it reads
    'det_configs/addp_base_maskrcnn.py': 'Mask R-CNN',
    'seg_configs/addp_base_upernet.py': 'UperNet',
    'pretrain/configs/addp_base_1600e.py': 'ADDP',
    'pretrain/configs/finetune_base_100e.py': 'fine-tuning',
}


def pipelines(device: torch.device, report: Report) -> None:
    """Check 16: reported, nothing is required; the processes of a GPU need that many images a second together."""
    count = 60 if device.type == 'cuda' else 3
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        data = write_data(Path(name) / 'data', 8)
        for path, stage in CONFIGS.items():
            cfg = load_stage(stage, data, Path(name) / 'work', torch.float32, 1, 1)
            options = cfg.train_dataloader.dataset
            options.pipeline = Config.fromfile(ROOT / path).train_dataloader.dataset.pipeline
            for module in cfg.get('custom_imports', {}).get('imports', []):
                __import__(module)
            init_default_scope(cfg.get('default_scope', 'mmengine'))
            dataset = DATASETS.build(options)
            dataset[0]
            start = time.perf_counter()
            for i in range(count):
                dataset[i % len(dataset)]
            rate = count / (time.perf_counter() - start)
            report.measured(f'pipeline of {path}, images of 128 px', rate, 'images/s a core')
            DefaultScope._instance_dict.clear()
    report.figure = ', '.join(f'{value:.0f}' for value in report.values.values()) + ' images/s a core'
