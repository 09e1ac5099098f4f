"""Detection and segmentation configs: what they resolve to, and that every leaf runs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer
from small_configs import IMAGE_SIDE_PX, REPOSITORY, leaf_configs, small_config
from torch import nn

from addp_backbone.networks.arch import get_arch
from addp_backbone.networks.fit import backbone_values

LEAVES = leaf_configs()
TRAINABLE = [  # ViTDet's own are at toy size what ADDP's of the same kind are
    leaf for leaf in LEAVES if not leaf.endswith(('_ms.py', '_fsdp.py')) and '/vitdet_' not in leaf
]
DETECTORS = [leaf for leaf in TRAINABLE if leaf.startswith('det_configs')]


@pytest.fixture(autouse=True)
def _fresh_scope() -> Iterator[None]:
    """What mmengine keeps for the whole process goes with the test: the last run's scope, visualizer and messages."""
    yield
    for manager in (DefaultScope, Visualizer, MessageHub):
        manager._instance_dict.clear()


def _load(leaf: str) -> Config:
    return Config.fromfile(REPOSITORY / leaf)


def _runner(cfg: Config) -> Runner:
    cfg.experiment_name = f'{Path(cfg.work_dir).parent.name}_{Path(cfg.work_dir).name}'
    return Runner.from_cfg(cfg)


# What the leaves say, against the reference (sections 4 and 5).


@pytest.mark.parametrize(
    ('arch', 'decay_rate', 'drop_path', 'global_blocks'),
    [('base', 0.7, 0.1, (2, 5, 8, 11)), ('large', 0.8, 0.4, (5, 11, 17, 23))],
)
def test_mask_rcnn_leaf_is_vitdets_recipe(
    arch: str, decay_rate: float, drop_path: float, global_blocks: tuple[int, ...]
) -> None:
    cfg = _load(f'det_configs/addp_{arch}_maskrcnn.py')
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.drop_path_rate, backbone.window_size, backbone.rel_pos) == (
        arch,
        drop_path,
        14,
        True,
    )
    assert (backbone.img_size, backbone.pretrain_img_size) == (1024, 256)
    assert 'global_attn_indices' not in backbone and get_arch(arch).global_attn_indices == global_blocks
    assert arch in backbone.init_cfg.checkpoint
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1)
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_rate=decay_rate, no_weight_decay='norm_and_pos_embed')
    assert cfg.train_cfg.max_iters == 184375
    warmup, steps = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.end, warmup.by_epoch) == ('LinearLR', 0.001, 250, False)
    assert (steps.type, steps.milestones, steps.gamma, steps.by_epoch) == ('MultiStepLR', [163889, 177546], 0.1, False)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 64


@pytest.mark.parametrize(
    ('arch', 'lr', 'decay_rate', 'drop_path', 'tapped'),
    [('base', 1e-4, 0.65, 0.1, (3, 5, 7, 11)), ('large', 2e-5, 0.95, 0.2, (7, 11, 15, 23))],
)
def test_upernet_leaf_is_maes_recipe(
    arch: str, lr: float, decay_rate: float, drop_path: float, tapped: tuple[int, ...]
) -> None:
    cfg = _load(f'seg_configs/addp_{arch}_upernet.py')
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.arch, backbone.drop_path_rate) == ('ADDPSegViT', arch, drop_path)
    assert backbone.img_size == cfg.crop_size[0] == 512
    assert backbone.out_indices == 'upernet' and get_arch(arch).upernet_indices == tapped
    assert cfg.model.decode_head.loss_decode.avg_non_ignore is False
    assert arch in backbone.init_cfg.checkpoint
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_rate=decay_rate, no_weight_decay='1d')
    assert cfg.train_cfg.max_iters == 160000
    warmup, poly = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.end) == ('LinearLR', 1e-6, 1500)
    assert (poly.type, poly.power, poly.begin, poly.eta_min, poly.get('end')) == ('PolyLR', 1.0, 1500, 0.0, None)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    assert cfg.model.auxiliary_head.in_index == 2 and cfg.model.auxiliary_head.channels == 256
    assert cfg.model.auxiliary_head.loss_decode.loss_weight == 0.4


def test_multi_scale_test_never_shrinks_the_shorter_side_under_a_crop() -> None:
    """BEiT's ``SETR_Resize``; the longer side follows, without a limit."""
    sizes = _load('seg_configs/addp_base_upernet_ms.py').test_dataloader.dataset.pipeline[1].transforms[0]
    assert [step.scale for step in sizes] == [512, 512, 512, 640, 768, 896]
    for step, short in zip(sizes, (512, 512, 512, 640, 768, 896), strict=True):
        resized = TRANSFORMS.build(dict(step, _scope_='mmseg'))(dict(img=np.zeros((100, 500, 3), np.uint8)))
        assert resized['img'].shape[:2] == (short, 5 * short)


def test_heads_have_vitdets_convs_and_norms() -> None:
    model = _load('det_configs/addp_base_maskrcnn.py').model
    box_head, mask_head = model.roi_head.bbox_head, model.roi_head.mask_head
    assert (model.rpn_head.num_convs, box_head.num_shared_convs, box_head.num_shared_fcs, mask_head.num_convs) == (
        2,
        4,
        1,
        4,
    )
    assert box_head.norm_cfg == mask_head.norm_cfg == dict(type='ChannelLN', eps=1e-6)
    assert (box_head.reg_class_agnostic, mask_head.class_agnostic) == (False, False)


@pytest.mark.parametrize('arch', ['base', 'large'])
@pytest.mark.parametrize(('epochs', 'iters'), [(12, 22125), (25, 46094)])
def test_short_schedules_are_the_long_one_in_proportion(arch: str, epochs: int, iters: int) -> None:
    full, short = _load(f'det_configs/addp_{arch}_maskrcnn.py'), _load(f'det_configs/addp_{arch}_maskrcnn_{epochs}e.py')
    assert short.train_cfg.max_iters == iters == round(full.train_cfg.max_iters * epochs / 100)
    assert short.param_scheduler[0] == full.param_scheduler[0]
    assert short.param_scheduler[1].milestones == [
        round(iters * full_step / full.train_cfg.max_iters) for full_step in full.param_scheduler[1].milestones
    ]
    assert (short.model, short.optim_wrapper, short.train_dataloader) == (
        full.model,
        full.optim_wrapper,
        full.train_dataloader,
    )


@pytest.mark.parametrize('arch', ['base', 'large'])
def test_cascade_differs_from_mask_rcnn_in_its_box_heads_alone(arch: str) -> None:
    cascade, plain = _load(f'det_configs/addp_{arch}_cascade.py'), _load(f'det_configs/addp_{arch}_maskrcnn.py')
    heads = cascade.model.roi_head.pop('bbox_head')
    assert [head.bbox_coder.target_stds[0] for head in heads] == pytest.approx([1 / 10, 1 / 20, 1 / 30])
    assert [stage.assigner.pos_iou_thr for stage in cascade.model.train_cfg.pop('rcnn')] == [0.5, 0.6, 0.7]
    for head in heads:
        head.update(reg_class_agnostic=False, bbox_coder=plain.model.roi_head.bbox_head.bbox_coder)
        assert head == plain.model.roi_head.bbox_head
    for cfg in (cascade, plain):
        for option in ('type', 'num_stages', 'stage_loss_weights', 'bbox_head'):
            cfg.model.roi_head.pop(option, None)
        cfg.model.pop('type')
        cfg.model.train_cfg.pop('rcnn', None)
    assert cascade.to_dict() == plain.to_dict()


@pytest.mark.parametrize('kind', ['maskrcnn', 'cascade'])
@pytest.mark.parametrize('arch', ['base', 'large'])
def test_vitdet_leaf_differs_from_addps_in_the_weights_it_starts_from_alone(arch: str, kind: str) -> None:
    ours, theirs = (_load(f'det_configs/{name}_{arch}_{kind}.py') for name in ('addp', 'vitdet'))
    assert theirs.model.backbone.pretrain_img_size == 224 and 'mae' in theirs.model.backbone.init_cfg.checkpoint
    theirs.model.backbone.update(pretrain_img_size=256, init_cfg=ours.model.backbone.init_cfg)
    assert theirs.to_dict() == ours.to_dict()


@pytest.mark.parametrize('kind', ['maskrcnn', 'cascade'])
def test_vitdets_huge_leaf_is_its_recipe(kind: str) -> None:
    cfg, large = _load(f'det_configs/vitdet_huge_{kind}.py'), _load(f'det_configs/vitdet_large_{kind}.py')
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.drop_path_rate) == ('huge', 0.5)
    assert get_arch('huge').global_attn_indices == (7, 15, 23, 31)
    assert cfg.optim_wrapper.paramwise_cfg == dict(decay_rate=0.9, no_weight_decay='nothing')
    assert cfg.train_cfg.max_iters == 184375 * 3 // 4
    assert cfg.param_scheduler[1].milestones == [step * 3 // 4 for step in large.param_scheduler[1].milestones]
    assert cfg.model.roi_head == large.model.roi_head


def test_heads_start_as_detectron2s() -> None:
    model = _load('det_configs/addp_base_maskrcnn.py').model
    model.backbone.update(arch='tiny', init_cfg=None)
    model.neck.in_channels = 192
    init_default_scope('mmdet')
    heads = MODELS.build(model).roi_head
    heads.init_weights()
    box_fc = heads.bbox_head.shared_fcs[0].weight
    assert box_fc.std().item() == pytest.approx(1 / (3 * 256 * 49 / 3) ** 0.5, rel=0.02)
    assert box_fc.abs().max().item() == pytest.approx((3 / (256 * 49)) ** 0.5, rel=0.01), 'uniform'
    assert heads.mask_head.conv_logits.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert heads.bbox_head.fc_cls.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert heads.bbox_head.fc_reg.weight.std().item() == pytest.approx(0.001, rel=0.05)
    deconv = heads.mask_head.upsample.weight
    assert deconv.std().item() == pytest.approx((2 / (256 * 4)) ** 0.5, rel=0.05)


@pytest.mark.parametrize('leaf', [leaf for leaf in LEAVES if 'timm_' not in leaf])
def test_widths_follow_from_the_arch(leaf: str) -> None:
    model = _load(leaf).model
    model = model.get('module', model)
    width = get_arch(model.backbone.arch).width
    if 'rpn_head' in model:
        assert model.neck.in_channels == width
    else:
        assert model.neck.embed_dim == model.auxiliary_head.in_channels == width
        assert model.decode_head.in_channels == [width] * 4
        assert model.decode_head.channels == width or model.backbone.arch == 'tiny'


@pytest.mark.parametrize('leaf', [leaf for leaf in LEAVES if 'timm_' in leaf])
@pytest.mark.parametrize(
    ('name', 'width', 'mean'),
    [('vit_small_patch14_dinov2', 384, (123.675, 116.28, 103.53)), ('vit_base_patch16_siglip_224', 768, (127.5,) * 3)],
)
def test_one_option_changes_the_backbone_and_all_that_follows(leaf: str, name: str, width: int, mean: tuple) -> None:
    cfg = _load(leaf)
    cfg.merge_from_dict({'model.backbone.model': name, 'model.backbone.init_cfg': None})
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model).__name__ == cfg.model.model_type.rpartition('.')[2]
    assert model.data_preprocessor.mean.flatten().shape == (3,)
    maps = model.backbone.out_channels
    assert set(maps) == {width}
    if 'neck' in cfg.model and leaf.startswith('det'):
        assert model.neck.levels[-1][-2].in_channels == width or width in {
            module.in_channels for module in model.neck.modules() if hasattr(module, 'in_channels')
        }
    else:
        assert list(model.decode_head.in_channels) == [width] * 4
    values = backbone_values(cfg.model.backbone)
    assert (values['width'], values['mean']) == (width, pytest.approx(list(mean)))


@pytest.mark.parametrize('leaf', [leaf for leaf in LEAVES if leaf.startswith('det_configs')])
def test_a_detectors_images_have_the_size_that_its_backbone_is_made_for(leaf: str) -> None:
    cfg = _load(leaf)
    backbone = cfg.model.get('module', cfg.model).backbone
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        steps = loader.dataset.pipeline
        assert [step.scale for step in steps if 'scale' in step] == [(backbone.img_size, backbone.img_size)]


def test_a_word_or_backbone_that_nobody_knows_is_refused() -> None:
    cfg = _load('det_configs/timm_maskrcnn.py')
    cfg.merge_from_dict({'model.neck.in_channels': 'backbone.witdh', 'model.backbone.init_cfg': None})
    init_default_scope('mmdet')
    with pytest.raises(ValueError, match=r"'backbone.witdh' is unknown, wanted one of \['backbone.width'"):
        MODELS.build(cfg.model)
    cfg.merge_from_dict({'model.backbone.type': 'ResNet'})
    with pytest.raises(ValueError, match=r"widths of TimmViT and ADDPViT, got backbone\.type='ResNet'"):
        MODELS.build(cfg.model)


@pytest.mark.parametrize('leaf', LEAVES)
def test_leaf_is_classic_style_registers_by_one_import_and_resumes_exactly(leaf: str) -> None:
    cfg = _load(leaf)
    assert cfg.custom_imports == dict(imports=['addp_backbone'], allow_failed_imports=False)
    assert cfg.default_scope == ('mmdet' if leaf.startswith('det') else 'mmseg')
    assert cfg.train_dataloader.sampler.type == 'SeededInfiniteSampler'
    assert cfg.train_dataloader.dataset.pipeline[0].type == 'SeedAugmentation'
    assert {'SeedEachIteration', 'StopOnBadLoss'} <= {hook.type for hook in cfg.custom_hooks}
    assert cfg.train_cfg.type == 'IterBasedTrainLoop' and cfg.default_hooks.checkpoint.by_epoch is False


@pytest.mark.parametrize('leaf', LEAVES)
def test_docstring_tells_command_published_value_and_what_we_measured(leaf: str) -> None:
    docstring = ast.get_docstring(ast.parse((REPOSITORY / leaf).read_text(encoding='utf-8'))) or ''
    assert leaf in docstring
    if '_tiny_' not in leaf:
        assert re.search(r'(GPUs|CHECKPOINT 8)', docstring) and 'measured: ' in docstring and 'published' in docstring
    published = {
        'addp_base_maskrcnn.py': '51.7',
        'addp_large_maskrcnn.py': '54.6',
        'addp_base_upernet.py': '48.1',
        'addp_large_upernet.py': '54.3',
        'vitdet_base_maskrcnn.py': '51.6',
        'vitdet_large_maskrcnn.py': '55.5',
        'vitdet_huge_maskrcnn.py': '56.7',
        'vitdet_base_cascade.py': '54.0',
        'vitdet_large_cascade.py': '57.6',
        'vitdet_huge_cascade.py': '58.7',
    }
    assert f'published {published.get(Path(leaf).name, "")}' in docstring or '_tiny_' in leaf


@pytest.mark.parametrize('leaf', LEAVES)
def test_no_config_is_more_than_three_files_deep(leaf: str) -> None:
    assert _depth(REPOSITORY / leaf) <= 3


def _depth(path: Path) -> int:
    bases: list[str] = []
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_base_':
            value = ast.literal_eval(node.value)
            bases = [value] if isinstance(value, str) else value
    return 1 + max((_depth(path.parent / base) for base in bases), default=0)


def test_the_sweep_runs_16_settings_of_two_values_that_the_leaf_has() -> None:
    result = subprocess.run(
        [str(REPOSITORY / 'seg_configs' / 'sweep_large.sh'), '4', '--amp'],
        env=dict(DRY_RUN='1', PATH='/usr/bin:/bin'),
        capture_output=True,
        text=True,
        check=True,
    )
    commands = result.stdout.splitlines()
    assert len(set(commands)) == 16
    leaf = _load('seg_configs/addp_large_upernet.py')
    settings = set()
    for command in commands:
        assert 'seg_configs/addp_large_upernet.py 4 --amp --resume' in command
        options = dict(word.split('=') for word in command.split('--cfg-options ')[1].split())
        assert set(options) == {'optim_wrapper.optimizer.lr', 'optim_wrapper.paramwise_cfg.decay_rate'}
        settings.add(tuple(float(value) for value in options.values()))
    assert {lr for lr, _ in settings} == {2e-5, 4e-5, 8e-5, 1e-4} and {decay for _, decay in settings} == {
        0.8,
        0.85,
        0.9,
        0.95,
    }
    assert (leaf.optim_wrapper.optimizer.lr, leaf.optim_wrapper.paramwise_cfg.decay_rate) in settings


# What the leaves do.


@pytest.mark.parametrize('leaf', TRAINABLE)
def test_leaf_trains_one_iteration_and_validates(leaf: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    data = request.getfixturevalue('tiny_coco' if leaf.startswith('det') else 'tiny_ade')
    cfg = small_config(leaf, data, tmp_path)
    if '_fasterrcnn' in leaf:
        cfg.train_dataloader.dataset.ann_file = str(_boxes_alone(data, tmp_path))
    runner = _runner(cfg)
    before = [param.detach().clone() for param in runner.model.parameters()]
    metrics: dict[str, float] = {}
    runner.val_loop.evaluator.evaluate = _recorded(runner.val_loop.evaluator.evaluate, metrics)
    runner.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, runner.model.parameters(), strict=True))
    assert all(param.isfinite().all() for param in runner.model.parameters())
    assert metrics or leaf.startswith('det'), 'a detector that detects nothing has no metrics'
    assert (tmp_path / 'iter_1.pth').is_file()


def _boxes_alone(data: Path, folder: Path) -> Path:
    annotations = json.loads((data / 'annotations' / 'instances_train2017.json').read_text(encoding='utf-8'))
    for record in annotations['annotations']:
        del record['segmentation']
    (folder / 'boxes.json').write_text(json.dumps(annotations), encoding='utf-8')
    return folder / 'boxes.json'


def _recorded(evaluate, metrics):
    def record(size):
        metrics.update(evaluate(size))
        return metrics

    return record


@pytest.mark.parametrize('arch', ['base', 'large'])
def test_multi_scale_leaf_tests_a_checkpoint_of_the_leaf_it_inherits(arch: str, tiny_ade: Path, tmp_path: Path) -> None:
    plain = small_config(f'seg_configs/addp_{arch}_upernet.py', tiny_ade, tmp_path / 'plain')
    init_default_scope('mmseg')
    checkpoint = tmp_path / 'plain.pth'
    torch.save(dict(state_dict=MODELS.build(plain.model).state_dict(), meta={}), checkpoint)
    cfg = small_config(f'seg_configs/addp_{arch}_upernet_ms.py', tiny_ade, tmp_path / 'ms')
    cfg.load_from = str(checkpoint)
    samples = cfg.test_dataloader.dataset.pipeline[1].transforms
    assert len(samples[0]) * len(samples[1]) == 12, 'six sizes, each with its mirror image'
    metrics = _runner(cfg).test()
    assert 0 <= metrics['mIoU'] <= 100


@pytest.mark.parametrize(
    'leaf',
    [leaf for leaf in DETECTORS if '_base_maskrcnn.' in leaf or '_base_cascade' in leaf or '_base_faster' in leaf],
)
def test_a_batch_without_objects_gives_every_parameter_a_gradient(leaf: str, tiny_coco: Path, tmp_path: Path) -> None:
    """Otherwise DistributedDataParallel would wait for gradients that never come."""
    cfg = small_config(leaf, tiny_coco, tmp_path)
    init_default_scope('mmdet')
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    model = MODELS.build(cfg.model)
    samples = []
    for _ in range(2):
        sample = DetDataSample(metainfo=dict(img_shape=(48, 64), ori_shape=(48, 64), scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        if model.with_mask:
            sample.gt_instances.masks = BitmapMasks(np.zeros((0, 48, 64), np.uint8), 48, 64)
        samples.append(sample)
    batch = model.data_preprocessor(dict(inputs=[torch.zeros(3, 48, 64)] * 2, data_samples=samples), training=True)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    assert [name for name, param in model.named_parameters() if param.grad is None] == []


def test_images_without_objects_after_the_crop_stay_in_the_batch() -> None:
    pipeline = _load('det_configs/addp_base_maskrcnn.py').train_pipeline
    assert [step.type for step in pipeline] == [
        'SeedAugmentation',
        'LoadImage',
        'LargeScaleJitter',
        'PackDetInputs',
    ]
    jitter = TRANSFORMS.build(pipeline[2])
    image = np.zeros((48, 64, 3), np.uint8)
    sample = jitter(
        dict(img=image, instances=[dict(bbox=[1, 1, 1.1, 1.1], bbox_label=0, ignore_flag=0, mask=[[0] * 6])])
    )
    assert sample['gt_bboxes'].shape == (0, 4) and len(sample['gt_masks']) == len(sample['gt_ignore_flags']) == 0


def test_detection_images_are_padded_to_a_square_of_1024_px() -> None:
    cfg = _load('det_configs/addp_base_maskrcnn.py')
    init_default_scope('mmdet')
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    from mmdet.structures import DetDataSample

    image = torch.full((3, 700, 1024), 255, dtype=torch.uint8)
    batch = preprocessor(dict(inputs=[image], data_samples=[DetDataSample(metainfo=dict(img_shape=(700, 1024)))]))
    assert batch['inputs'].shape == (1, 3, 1024, 1024)
    assert batch['inputs'][0, :, 700:].abs().max() == 0, 'padded with the mean colour'


def test_preprocessors_turn_bgr_pixels_into_addps_normalised_rgb() -> None:
    """ADDP's encoder sees pixels in [0, 1] minus ImageNet's mean, over its std."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for leaf in ('det_configs/addp_base_maskrcnn.py', 'seg_configs/addp_base_upernet.py'):
        options = _load(leaf).model.data_preprocessor
        assert options.bgr_to_rgb
        torch.testing.assert_close(torch.tensor(options.mean) / 255, mean)
        torch.testing.assert_close(torch.tensor(options.std) / 255, std)


def test_a_very_wide_image_is_segmented_at_its_own_size(tiny_ade: Path, tmp_path: Path) -> None:
    """Its shorter side stays under the crop: the preprocessor pads, and the prediction is cut back."""
    cfg = small_config('seg_configs/addp_base_upernet.py', tiny_ade, tmp_path)
    init_default_scope('mmseg')
    from mmseg.structures import SegDataSample

    model: nn.Module = MODELS.build(cfg.model).eval()
    height, width = 20, 3 * IMAGE_SIDE_PX
    sample = SegDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width)))
    with torch.no_grad():
        result = model.test_step(dict(inputs=[torch.zeros(3, height, width)], data_samples=[sample]))[0]
    assert result.pred_sem_seg.shape == (height, width)
