"""Walks the two roads through the code by running them, and prints the project's files in the order they are entered.

python tests/architecture/roads.py     # prints the figures that docs/architecture.md quotes; about a minute

*image -> image*: one sample and one training step of the tiny ADDP. *checkpoint -> number*: that ADDP's checkpoint is
converted, trained on as a segmentor for one iteration, and tested. Each function counts once, when it is first called,
as a reader would read it. "Returns" are steps back into a file that was left before.
"""

from __future__ import annotations

import importlib
import runpy
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

ROOT = Path.cwd()  # of the checkout that is walked, which may be another commit's
ROOMS = ('addp_backbone', 'pretrain', 'experiments', 'tools')


def walk(run: Callable[[], Any]) -> list[str]:
    """Runs something and lists the file of each project function, in the order of their first calls."""
    seen: set[Any] = set()
    files: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != 'call' or code in seen or code.co_name.startswith('<'):
            return
        seen.add(code)
        try:
            parts = Path(code.co_filename).resolve().relative_to(ROOT).parts
        except ValueError:
            return
        if parts[0] in ROOMS and 'configs' not in parts:
            files.append('/'.join(parts))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return files


def count(files: list[str]) -> tuple[list[str], int]:
    """The distinct files in order, and how often the walk steps back into one that it left."""
    steps = [file for i, file in enumerate(files) if i == 0 or file != files[i - 1]]
    distinct = list(dict.fromkeys(steps))
    return distinct, len(steps) - len(distinct)


def write_images(folder: Path, side: int, count: int) -> None:
    """Noise images and masks, in the layout of ADE20K."""
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for i in range(count):
            for kind, shape in (('images', (side, side, 3)), ('annotations', (side, side))):
                path = folder / kind / split / f'{i}.{"jpg" if kind == "images" else "png"}'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 20, shape, dtype=np.uint8)).save(path)


def training_step(cfg: Config, model: torch.nn.Module) -> None:
    """One sample and one step of ADDP."""
    sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
    inputs = sample['inputs'][None].float() / 255
    model(inputs, mode='loss')['loss'].backward()


def run_tool(tool: str, *arguments: str) -> None:
    """Runs a command in this process; whatever it prints is swallowed."""
    before, sys.argv = sys.argv, [tool, *arguments]
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f'tools/{tool} ended with {end.code}') from end
    finally:
        sys.argv = before


def transfer(work_dir: Path, checkpoint: Path) -> None:
    """Checkpoint -> backbone weights -> one iteration of UperNet -> mIoU."""
    config = str(ROOT / 'seg_configs/addp_tiny_upernet_128px.py')
    data = [f'{split}_dataloader.dataset.data_root={work_dir}' for split in ('train', 'val', 'test')]
    workers = [
        f'{split}_dataloader.{option}'
        for split in ('train', 'val', 'test')
        for option in ('num_workers=0', 'persistent_workers=False')
    ]
    backbone = work_dir / 'backbone.pth'
    run_tool('convert_checkpoint.py', str(checkpoint), str(backbone), '--patch-size', '8', '--img-size', '128')
    weights = ['model.backbone.init_cfg.type=Pretrained', f'model.backbone.init_cfg.checkpoint={backbone}']
    schedule = [
        'train_cfg.max_iters=1',
        'train_cfg.val_interval=1',
        'param_scheduler.0.end=1',
        'param_scheduler.1.begin=0',
    ]
    options = ['--work-dir', str(work_dir / 'run'), '--cfg-options', *data, *workers]
    run_tool('train.py', config, *options, *weights, *schedule)
    run_tool('test.py', config, str(work_dir / 'run' / 'iter_1.pth'), *options)


def main() -> None:
    """Prints both roads."""
    sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]
    for name in ('addp_backbone', 'pretrain.training', 'pretrain.classification'):  # registering is not on the road
        with suppress(ModuleNotFoundError):
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as name:
        work_dir = Path(name)
        write_images(work_dir, 128, 2)
        cfg = Config.fromfile(ROOT / 'pretrain/configs/addp_tiny.py')
        init_default_scope('mmengine')
        cfg.train_dataloader.dataset.data_root = str(work_dir / 'images')
        model = MODELS.build(cfg.model)
        checkpoint = work_dir / 'addp.pth'
        torch.save(dict(model=model.addp.state_dict()), checkpoint)
        roads = {
            'image -> image': lambda: training_step(cfg, model),
            'checkpoint -> number': lambda: transfer(work_dir, checkpoint),
        }
        for title, run in roads.items():
            distinct, returns = count(walk(run))
            print(f'{title}: {len(distinct)} files, {returns} returns: {" -> ".join(distinct)}')


if __name__ == '__main__':
    main()
