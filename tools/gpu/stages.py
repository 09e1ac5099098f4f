"""The stages that checks train: tiny leaves on generated shapes, in each precision, with the project's own Runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS, DefaultScope
from torch import Tensor

from addp_backbone.checkpoint.storage import read_checkpoint
from addp_backbone.datasets.shapes.scenes import SHAPE_CLASSES
from addp_backbone.datasets.shapes.writer import SEG_CLASSES, ShapeSettings, write_shapes
from addp_backbone.runtime.launch import fit_to_device, set_resume, use_safe_hooks
from addp_backbone.runtime.runner import StageRunner
from addp_backbone.runtime.sharding import check_sharding
from tools.gpu.measuring import largest_error

ROOT = Path(__file__).resolve().parents[2]
LEAVES = {
    'Mask R-CNN': 'det_configs/addp_tiny_maskrcnn_128px.py',
    'UperNet': 'seg_configs/addp_tiny_upernet_128px.py',
    'ADDP': 'pretrain/configs/addp_tiny.py',
    'fine-tuning': 'pretrain/configs/finetune_tiny.py',
}
FIRST_SCALE = 2.0**13
WRAPPERS: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: dict(type='OptimWrapper'),
    # From 2**16 the first step overflows and is skipped, and the losses would be compared one step apart.
    torch.float16: dict(type='AmpOptimWrapper', loss_scale=dict(init_scale=FIRST_SCALE)),
    torch.bfloat16: dict(type='BFloat16OptimWrapper'),
}


class Training(NamedTuple):
    """What a run leaves.

    Attributes:
        losses: Of each iteration.
        scales: Loss scale after each iteration, of float16.
        weights: The model's tensors in the last checkpoint.
        work_dir: With its checkpoints.
    """

    losses: list[float]
    scales: list[float]
    weights: dict[str, Tensor]
    work_dir: Path


class Recorder(Hook):
    """Keeps the loss, and the loss scale if there is one, of each iteration."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.scales: list[float] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Reads them."""
        self.losses.append(float(outputs['loss'].detach()))
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        if scaler is not None:
            self.scales.append(float(scaler.get_scale()))


def write_data(folder: Path, count: int) -> Path:
    """Generated shapes for all stages, 128 px: ``count`` scenes and plain images, and as many of each class / 8."""
    per_class = max(1, count // 8)
    settings = ShapeSettings(
        128, 128, train_scenes=count, val_scenes=1, train_per_class=per_class, val_per_class=1, plain_images=count
    )
    write_shapes(folder, settings)
    return folder


def load_stage(stage: str, data: Path, work_dir: Path, dtype: torch.dtype, iters: int, batch_size: int) -> Config:
    """The config of a short run.

    Args:
        stage: Key of ``LEAVES``.
        data: Folder of :func:`write_data`.
        work_dir: Where the run writes.
        dtype: Precision.
        iters: Iterations; a checkpoint is written in the middle and at the end.
        batch_size: Images.

    Returns:
        The config, without validation and data workers.
    """
    cfg = Config.fromfile(ROOT / LEAVES[stage])
    dataset = cfg.train_dataloader.dataset
    if stage == 'Mask R-CNN':
        dataset.update(data_root=f'{data}/', ann_file='instances_train.json', data_prefix=dict(img='images/train/'))
        dataset.metainfo = dict(classes=SHAPE_CLASSES)
        for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
            head.num_classes = len(SHAPE_CLASSES)
    elif stage == 'UperNet':
        colours = [[i, i, i] for i in range(len(SEG_CLASSES))]
        dataset.update(type='BaseSegDataset', data_root=str(data), img_suffix='.png', seg_map_suffix='.png')
        dataset.data_prefix = dict(img_path='images/train', seg_map_path='annotations/train')
        dataset.update(reduce_zero_label=True, metainfo=dict(classes=SEG_CLASSES, palette=colours))
        for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
            head.num_classes = len(SEG_CLASSES)
    elif stage == 'ADDP':
        dataset.update(data_root=str(data / 'plain'), data_prefix='')
        cfg.model.init_cfg = dict(tokenizer='random', token_predictor='random')
        cfg.default_hooks.pop('figure')
    else:
        dataset.data_root = str(data / 'classes')
        cfg.model.num_classes = len(SHAPE_CLASSES)
        cfg.model.backbone.init_cfg = None
    if stage in ('Mask R-CNN', 'UperNet') and torch.cuda.is_available():  # so that the kernel with positions trains
        cfg.model.backbone.update(rel_pos=True)
    cfg.train_dataloader.update(batch_size=batch_size, num_workers=0, persistent_workers=False)
    _shorten(cfg, iters)
    wrapper = cfg.optim_wrapper
    for name in ('type', 'loss_scale', 'dtype'):
        wrapper.pop(name, None)
    wrapper.update(WRAPPERS[dtype])
    cfg.update(work_dir=str(work_dir), experiment_name=work_dir.name, log_level='ERROR', launcher='none')
    return cfg


def _shorten(cfg: Config, iters: int) -> None:
    """A few iterations at a constant learning rate; nothing is evaluated."""
    for name in list(cfg):
        if name.startswith(('val_', 'test_')) or name in ('visualizer', 'vis_backends'):
            cfg.pop(name)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=10 * iters)
    cfg.param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False)]
    hooks = cfg.default_hooks
    for name in ('visualization', 'throughput'):
        hooks.pop(name, None)
    hooks.checkpoint = dict(type='SafeCheckpointHook', by_epoch=False, interval=max(1, iters // 2))
    hooks.logger.interval = iters
    cfg.log_processor = dict(type='LogProcessor', by_epoch=False, window_size=1)
    cfg.randomness = dict(seed=0)


def train_stage(cfg: Config, resume: str | None = None) -> Training:
    """Trains as tools/train.py does."""
    for name in cfg.get('custom_imports', {}).get('imports', []):
        __import__(name)
    check_sharding(cfg)
    set_resume(cfg, resume)
    use_safe_hooks(cfg, world_size=1)
    fit_to_device(cfg)
    recorder = Recorder()
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else StageRunner.from_cfg(cfg)
    runner.register_hook(recorder)
    runner.train()
    last = read_checkpoint(str(Path(cfg.work_dir) / f'iter_{cfg.train_cfg.max_iters}.pth'))
    DefaultScope._instance_dict.clear()  # another stage has another scope
    return Training(recorder.losses, recorder.scales, last['state_dict'], Path(cfg.work_dir))


def weights_differ(one: Training, other: Training) -> float:
    """The largest relative error of a tensor of floats in the last checkpoints."""
    names = [name for name, x in other.weights.items() if x.is_floating_point() and x.norm() > 0]
    return largest_error([one.weights[n] for n in names], [other.weights[n] for n in names])
