"""A tiny class-folder tree, and classification leaves at toy size on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ('amber', 'blue', 'cyan', 'dun', 'ebony', 'fawn')
COLOURS = ((220, 160, 40), (40, 60, 220), (40, 220, 220), (120, 110, 90), (20, 20, 20), (240, 220, 190))
SIDE_PX = 32
NUM_TRAIN, NUM_VAL = 4, 11  # val images in all: no multiple of anything
ARCH = dict(width=24, depth=2, num_heads=3)


def write_classes(root: Path) -> Path:
    """Writes ``root/{train,val}/<class>/*.png``, noisy colours: 4 training images per class, 11 validation images."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        num_val = len(range(label, NUM_VAL, len(CLASSES)))
        for split, count in (('train', NUM_TRAIN), ('val', num_val)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(-20, 20, (SIDE_PX + 8, SIDE_PX, 3))
                image = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(image).save(root / split / name / f'{i}.png')
    return root


def small_leaf(path: Path, leaf: str, data_root: Path, more: str = '') -> Path:
    """Writes a narrow child of ``pretrain/configs/<leaf>.py`` on the tiny data; four iterations of six images."""
    cfg = Config.fromfile(ROOT / 'pretrain/configs' / f'{leaf}.py')
    pipelines = {split: cfg[f'{split}_dataloader'].dataset.pipeline for split in ('train', 'val')}
    for step in (*pipelines['train'], *pipelines['val']):
        step.update({key: SIDE_PX for key in ('size',) if key in step})
    loader = (
        'batch_size={}, num_workers=0, persistent_workers=False, pin_memory=False, '
        'dataset=dict(data_root={!r}, pipeline={})'
    )
    train, val = (
        loader.format(6 if split == 'train' else 4, str(data_root), [dict(step) for step in pipelines[split]])
        for split in ('train', 'val')
    )
    path.write_text(
        f"""_base_ = {str(ROOT / 'pretrain/configs' / leaf)!r} + '.py'
model = dict(num_classes=None, backbone=dict(arch={dict(_delete_=True, **ARCH)}, img_size={SIDE_PX},
             patch_size=8, init_cfg=None))
train_dataloader = dict({train})
val_dataloader = dict({val})
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_interval=100)
optim_wrapper = dict(type='OptimWrapper')
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2)]
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
log_processor = dict(window_size=1)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(vis_backends=vis_backends)
{more}
""",
        encoding='utf-8',
    )
    return path
