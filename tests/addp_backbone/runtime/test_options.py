"""Options of a config: names that nothing reads and values that cannot work are refused before anything is built."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from mmdet.utils import register_all_modules as register_mmdet
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.utils import register_all_modules as register_mmseg
from running import ROOT

from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.option_names import check_names
from addp_backbone.runtime.option_values import check_values

TINY = 'det_configs/addp_tiny_maskrcnn.py'
TINY_SEG = 'seg_configs/addp_tiny_upernet.py'
PRETRAINING = 'pretrain/configs/addp_tiny.py'
SHIPPED = sorted(
    str(path.relative_to(ROOT))
    for folder in ('det_configs', 'seg_configs', 'pretrain/configs')
    for path in (ROOT / folder).glob('*.py')
)
STOCK = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
]


@pytest.fixture(scope='module', autouse=True)
def _libraries() -> None:
    """What Runner imports for a config's ``default_scope``."""
    register_mmdet(init_default_scope=False)
    register_mmseg(init_default_scope=False)
    DefaultScope._instance_dict.clear()


def changed(config: str, option: str, value: Any) -> Config:
    """A shipped config with one option set."""
    cfg = Config.fromfile(ROOT / config)
    cfg.merge_from_dict({option: value})
    return cfg


@pytest.mark.parametrize('config', SHIPPED)
def test_no_shipped_config_is_refused(config: str) -> None:
    cfg = Config.fromfile(ROOT / config)
    check_names(cfg)
    check_values(cfg)


@pytest.mark.parametrize('config', STOCK)
def test_no_config_of_the_libraries_with_our_backbone_is_refused(config: str, tmp_path: Path) -> None:
    package, name = config.split('::')
    base = Path(str(importlib.import_module(package).__file__)).parent / '.mim' / 'configs' / name
    (tmp_path / 'leaf.py').write_text(
        f"_base_ = '{base}'\ncustom_imports = dict(imports=['addp_backbone'])\n"
        "model = dict(backbone=dict(_delete_=True, type='ADDPViT', arch='tiny'))\n"
    )
    cfg = Config.fromfile(tmp_path / 'leaf.py')
    check_names(cfg)
    check_values(cfg)


@pytest.mark.parametrize(
    ('config', 'option', 'meant'),
    [
        (TINY, 'model.test_cfg.rcnn.score_threshold', 'score_thr'),
        (TINY, 'model.test_cfg.rcnn.nms.iou_treshold', 'iou_threshold'),
        (TINY, 'model.train_cfg.rpn.asigner', 'assigner'),
        (TINY, 'model.backbone.droppath_rate', 'drop_path_rate'),
        (TINY, 'model.rpn_head.anchor_generator.scale', 'scales'),
        (TINY, 'train_dataloader.batchsize', 'batch_size'),
        (TINY, 'train_dataloader.dataset.filter_cfg.filter_empty', 'filter_empty_gt'),
        (TINY, 'train_dataloader.dataset.pipeline.2.crop', 'crop_size'),
        (TINY, 'optim_wrapper.optimizer.learning_rate', 'next to it are type, lr, betas, weight_decay$'),
        (TINY, 'optim_wrapper.clip_grad.maxnorm', 'max_norm'),
        (TINY, 'default_hooks.checkpoint.intervall', 'interval'),
        (TINY, 'val_evaluator.classwize', 'classwise'),
        (TINY, 'env_cfg.cudnn_bench', 'cudnn_benchmark'),
        (TINY, 'param_scheduler.0.start', 'start_factor'),
        (TINY, 'train_cfg.val_intervall', 'val_interval'),
        (TINY, 'trian_dataloader', 'train_dataloader'),
        (TINY_SEG, 'model.test_cfg.crop', 'crop_size'),
        (TINY_SEG, 'model.decode_head.dropout', 'dropout_ratio'),
        (TINY_SEG, 'optim_wrapper.paramwise_cfg.decay', 'decay_rate'),
        (PRETRAINING, 'model.network.tokenizer.num_code', 'num_codes'),
    ],
)
def test_a_name_that_nothing_reads_is_refused_wherever_it_stands(config: str, option: str, meant: str) -> None:
    with pytest.raises(LaunchError, match=f'{option}.*{meant}'):
        check_names(changed(config, option, 1))


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('train_dataloader.dataset.metainfo.camera', 'left'),
        ('model.test_cfg.rcnn.max_per_img', 300),
        ('model.test_cfg.rcnn.nms', dict(type='soft_nms', iou_threshold=0.5, min_score=0.05)),
        ('model.train_cfg.rcnn.sampler.add_gt_as_proposals', False),
        ('train_dataloader.prefetch_factor', 4),
        ('env_cfg.tf32', False),
        ('randomness.seed', 3),
        ('my_own_variable', dict(anything=1)),
    ],
)
def test_a_name_that_is_read_or_that_is_the_users_own_passes(option: str, value: Any) -> None:
    check_names(changed(TINY, option, value))


@pytest.mark.parametrize(
    ('config', 'option', 'value', 'message'),
    [
        (TINY, 'model.backbone.arch', 'enormous', "model.backbone.arch: unknown arch 'enormous'"),
        (PRETRAINING, 'model.network.token_predictor.arch', 'enormous', 'token_predictor.arch: unknown arch'),
        (TINY, 'train_cfg.max_epochs', 12, 'counts iterations; set train_cfg.max_iters'),
        (TINY, 'train_cfg.max_iters', 2.5, 'train_cfg.max_iters is 2.5'),
        (TINY, 'train_cfg.max_iters', -3, 'train_cfg.max_iters is -3'),
        (TINY, 'train_dataloader.num_workers', 0, 'add train_dataloader.persistent_workers=False'),
        (TINY, 'train_dataloader.batch_size', 0, 'batch_size is 0'),
        (TINY, 'optim_wrapper.optimizer.lr', 'abc', "lr is 'abc'"),
        (TINY, 'randomness', dict(seed='abc'), "seed is 'abc'"),
        (TINY, 'param_scheduler.1.end', 50, 'begins at 100 and ends at 50'),
        (TINY, 'param_scheduler.0.by_epoch', True, 'would never act'),
        (TINY, 'model.roi_head.bbox_head.num_classes', -1, 'num_classes is -1'),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_the_option_that_mends_it(
    config: str, option: str, value: Any, message: str
) -> None:
    with pytest.raises(LaunchError, match=message):
        check_values(changed(config, option, value))


def test_iterations_on_a_schedule_of_epochs_are_refused(tmp_path: Path) -> None:
    cfg = Config(dict(train_cfg=dict(by_epoch=True, max_epochs=12, max_iters=100)))
    with pytest.raises(LaunchError, match=r'counts epochs; set train_cfg\.max_epochs'):
        check_values(cfg)
