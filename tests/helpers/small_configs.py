"""Leaf configs at toy size: same structure and schedules, but narrow layers, 64 px images and tiny data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from addp_backbone.runtime.launch import fit_to_device

REPOSITORY = Path(__file__).resolve().parents[2]
ARCH = dict(width=24, depth=4, num_heads=3)
TIMM_MODEL = 'test_vit'  # 64 wide, patches of 16 px
NUM_CHANNELS = 8
IMAGE_SIDE_PX = 64
CHANNEL_OPTIONS = (
    'in_channels',
    'out_channels',
    'feat_channels',
    'conv_out_channels',
    'fc_out_channels',
    'channels',
    'embed_dim',
)
SIZE_OPTIONS = ('scale', 'crop_size', 'size', 'stride', 'pad_size_divisor')
SHAPES = ('disc', 'box', 'wedge')


def leaf_configs() -> list[str]:
    """All leaves, relative to the repository."""
    return sorted(
        str(path.relative_to(REPOSITORY))
        for folder in ('det_configs', 'seg_configs')
        for path in (REPOSITORY / folder).glob('*.py')
    )


def small_config(leaf: str, data_root: Path, work_dir: Path) -> Config:
    """Loads a leaf and makes it small.

    Args:
        leaf: One of :func:`leaf_configs`.
        data_root: Root of the fixture ``tiny_coco`` or ``tiny_ade``.
        work_dir: Where the run may write.

    Returns:
        A config for one iteration, with validation after it, on the CPU.
    """
    cfg = Config.fromfile(REPOSITORY / leaf)
    model = cfg.model.module if 'module' in cfg.model else cfg.model
    factor = IMAGE_SIDE_PX / model.backbone.img_size
    if model.type == 'FitToBackbone':
        model.backbone.update(model=TIMM_MODEL, img_size=IMAGE_SIDE_PX, init_cfg=None)
        if model.backbone.get('out_indices') != 'upernet':
            model.backbone.out_indices = (-1,)
    else:
        model.backbone.update(arch=ARCH, img_size=IMAGE_SIDE_PX, init_cfg=None)
    if 'window_size' in model.backbone:
        model.backbone.window_size = min(3, model.backbone.window_size)
    _narrow(model)
    for options in (model, cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        _shrink_sizes(options, factor)
    if cfg.default_scope == 'mmdet':
        _use_coco(cfg, data_root)
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 20
    else:
        _use_ade(cfg, data_root)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=min(2, loader.batch_size), num_workers=0, persistent_workers=False)
    cfg.val_dataloader.dataset.indices = cfg.test_dataloader.dataset.indices = 2
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    cfg.param_scheduler = cfg.param_scheduler[:1]
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = str(work_dir)
    fit_to_device(cfg, cuda=False)
    return cfg


def _narrow(model: Config) -> None:
    """Makes all layers narrow; those that take the backbone's maps take its width."""
    width = 'backbone.width' if model.type == 'FitToBackbone' else ARCH['width']
    takes_maps = [part for part in ('neck', 'decode_head', 'auxiliary_head') if part in model]
    for name, part in model.items():
        for node in _dicts(part):
            for option in set(CHANNEL_OPTIONS) & set(node):
                node[option] = NUM_CHANNELS
            if 'num_classes' in node:
                node['num_classes'] = len(SHAPES) + ('rpn_head' not in model)
        if name in takes_maps:
            for option in {'in_channels', 'embed_dim'} & set(part):
                part[option] = width
    if 'decode_head' in model:
        model.decode_head.in_channels = [width] * 4


def _shrink_sizes(options: Config, factor: float) -> None:
    for node in _dicts(options):
        for option in set(SIZE_OPTIONS) & set(node):
            value = node[option]
            if option == 'pad_size_divisor':
                node[option] = max(32, round(value * factor))
            elif option == 'scale' and isinstance(value, int):
                node[option] = round(value * factor)
            elif isinstance(value, list | tuple):
                node[option] = tuple(round(side * factor) for side in value)


def _dicts(node: Any) -> Iterator[Any]:
    """Every dict within dicts and lists."""
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from _dicts(child)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _dicts(child)


def _use_coco(cfg: Config, root: Path) -> None:
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.update(data_root=f'{root}/', metainfo=dict(classes=SHAPES))
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{root}/annotations/instances_val2017.json'


def _use_ade(cfg: Config, root: Path) -> None:
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.update(
            type='BaseSegDataset',
            data_root=str(root),
            img_suffix='.jpg',
            seg_map_suffix='.png',
            reduce_zero_label=True,
            metainfo=dict(classes=('background', *SHAPES)),
        )


def write_timm_leaf(name: str, data: Path, folder: Path) -> Path:
    """Writes a UperNet leaf on a model of timm: four iterations, one frozen block, windows, checkpointing."""
    cfg = small_config('seg_configs/timm_tiny_upernet.py', data, folder)
    cfg.model.backbone.update(
        model=name, out_indices=(0, 1, 2, 3), frozen=1, with_cp=True, drop_path_rate=0.2, window_size=3
    )
    cfg.train_cfg.update(max_iters=4, val_interval=100)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.log_processor = dict(window_size=1, by_epoch=False)
    path = folder / 'leaf.py'
    cfg.dump(path)
    return path
