"""Small models as the project's configs build them, with weights under which scores differ, for the tests of export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from small_configs import REPOSITORY
from torch import Tensor

ARCH = dict(width=24, depth=2, num_heads=3)
NUM_CLASSES = 3
CHANNELS = dict(in_channels=16, conv_out_channels=16)


def write_detector(folder: Path, boxes_only: bool = False, backbone: dict[str, Any] | None = None) -> Path:
    """Writes a leaf of the tiny detector with 2 blocks, windows and relative positions; returns the config."""
    backbone = backbone or dict(
        type='ADDPViT', arch=ARCH, img_size=64, patch_size=8, pretrain_img_size=32, window_size=3
    )
    width = 64 if backbone['type'] == 'TimmViT' else ARCH['width']
    extractor = dict(out_channels=16)
    model = dict(
        backbone=dict(_delete_=True, **backbone),
        neck=dict(in_channels=width, out_channels=16),
        rpn_head=dict(in_channels=16, feat_channels=16),
        roi_head=dict(
            bbox_roi_extractor=extractor,
            bbox_head=dict(CHANNELS, fc_out_channels=32, num_classes=NUM_CLASSES),
            mask_roi_extractor=extractor,
            mask_head=dict(CHANNELS, num_classes=NUM_CLASSES),
        ),
        test_cfg=dict(rpn=dict(nms_pre=40, max_per_img=30), rcnn=dict(max_per_img=12, score_thr=0.2)),
    )
    base = 'det_configs/addp_tiny_fasterrcnn.py' if boxes_only else 'det_configs/addp_tiny_maskrcnn.py'
    if boxes_only:
        model['roi_head'] = {k: v for k, v in model['roi_head'].items() if not k.startswith('mask')}
    return _write(folder / 'detector.py', base, model, (96, 96))


def write_segmentor(folder: Path) -> Path:
    """Writes a leaf of the tiny segmentor with 4 blocks and windows of 32 px; returns the config."""
    arch = dict(ARCH, depth=4)
    backbone = dict(type='ADDPViT', arch=arch, img_size=32, patch_size=8, pretrain_img_size=32, window_size=0)
    heads = dict(num_classes=NUM_CLASSES, channels=16)
    model = dict(
        data_preprocessor=dict(size=(32, 32), test_cfg=dict(size=(32, 32))),
        backbone=dict(_delete_=True, out_indices=(0, 1, 2, 3), **backbone),
        neck=dict(embed_dim=ARCH['width']),
        decode_head=dict(in_channels=[ARCH['width']] * 4, **heads),
        auxiliary_head=dict(in_channels=ARCH['width'], **heads),
        test_cfg=dict(crop_size=(32, 32), stride=(20, 20)),
    )
    return _write(folder / 'segmentor.py', 'seg_configs/addp_tiny_upernet.py', model, (64, 48))


def _write(path: Path, base: str, model: dict[str, Any], scale: tuple[int, int]) -> Path:
    path.write_text(
        f"""_base_ = {str(REPOSITORY / base)!r}
model = {model!r}
test_pipeline = _base_.test_pipeline
for step in test_pipeline:
    step.update({{key: {scale} for key in ('scale',) if key in step}})
test_dataloader = dict(dataset=dict(pipeline=test_pipeline, metainfo=dict(classes=('disc', 'box', 'wedge'))))
""",
        encoding='utf-8',
    )
    return path


def build(config: Path | Config) -> Any:
    """Builds a config's model with weights so large that its scores differ."""
    cfg = Config.fromfile(config) if isinstance(config, Path) else config
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3 if 'head' in name else 0.2)
    return model.eval()


def save(config: Path) -> Path:
    """Writes a checkpoint of :func:`build`'s model beside the config."""
    path = config.with_suffix('.pth')
    torch.save({'state_dict': build(config).state_dict(), 'meta': {}}, path)
    return path


def samples(sizes: list[tuple[int, int]], padded: tuple[int, int]) -> list[DetDataSample]:
    """What mmdet wants to know of images of these sizes in a padded batch."""
    return [
        DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), batch_input_shape=padded))
        for size in sizes
    ]


def batch(number: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, list[tuple[int, int]]]:
    """Images (B, 3, H, W) of noise, each with other sizes without padding, which is zero."""
    images = torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(seed))
    sizes = [(height - 3 * i, width - 5 * i) for i in range(number)]
    for image, (rows, cols) in zip(images, sizes, strict=True):
        image[:, rows:] = 0
        image[:, :, cols:] = 0
    return images, sizes
