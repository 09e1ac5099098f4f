"""Frozen detection: one protocol for every backbone, of which nothing is trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from addp_backbone.runtime.launch import load_config
from experiments.probes.backbones import find_source
from experiments.trained.frozen_detection import NAME, frozen_detection
from experiments.trained.stages import plan_trainings

BACKBONES = ('random/tiny', 'random/test_vit')


def leaves(config, out, names=BACKBONES, **options):
    trainings = frozen_detection(str(config), [find_source(name) for name in names], (0, 1), out, **options)
    return trainings, [load_config(one.config, one.parsed_options()) for one in trainings]


def test_backbones_share_data_heads_and_schedule_of_the_config(tiny_det_config, tmp_path):
    base = load_config(str(tiny_det_config), {})
    trainings, configs = leaves(tiny_det_config, tmp_path)
    assert {one.name for one in trainings} == {NAME} and trainings[0].seeds == (0, 1)
    for cfg in configs:
        for key in ('train_dataloader', 'val_dataloader', 'val_evaluator', 'optim_wrapper', 'train_cfg'):
            assert cfg[key] == base[key]
        assert cfg.model.roi_head == base.model.roi_head and cfg.model.rpn_head == base.model.rpn_head


def test_pyramids_have_the_same_strides_and_heads_alone_learn(tiny_det_config, tmp_path):
    init_default_scope('mmdet')
    for cfg in leaves(tiny_det_config, tmp_path)[1]:
        model = MODELS.build(cfg.model).eval()
        maps = model.extract_feat(torch.zeros(1, 3, 64, 96))
        assert [tuple(one.shape[2:]) for one in maps[:4]] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        assert model.backbone.out_indices == (max(0, round(cfg_depth(model) * 3 / 4) - 1),)
        assert not any(one.requires_grad for one in model.backbone.parameters())
        assert all(one.requires_grad for one in model.neck.parameters())


def cfg_depth(model):
    return model.backbone.arch.depth if hasattr(model.backbone, 'arch') else len(model.backbone.vit.blocks)


def test_a_number_of_iterations_is_the_trainings_own(tiny_det_config, tmp_path):
    (cfg, _) = leaves(tiny_det_config, tmp_path, iters=7)[1]
    assert cfg.train_cfg.max_iters == cfg.train_cfg.val_interval == 7


def test_trainings_follow_from_the_leaves_and_an_estimate_without_a_backward_pass(tiny_det_config, tmp_path):
    (training, _), _ = leaves(tiny_det_config, tmp_path, iters=7)
    sources = {name: find_source(name) for name in BACKBONES}
    jobs = plan_trainings([training], sources, dict.fromkeys(BACKBONES, 'digest'), tmp_path)
    assert [job.seed for job in jobs] == [0, 1] and training.config in jobs[0].train.command
    leaf = Path(training.config)
    thawed = leaf.with_name('thawed.py')
    thawed.write_text(leaf.read_text().replace('frozen=True', 'frozen=False'))
    slow = plan_trainings(
        [replace(training, config=str(thawed))], sources, dict.fromkeys(BACKBONES, 'digest'), tmp_path
    )
    assert slow[0].train.seconds == pytest.approx(3 * jobs[0].train.seconds)


def test_the_name_of_a_backbone_is_never_read_as_code(tiny_det_config, tmp_path):
    source = replace(find_source(BACKBONES[0]), text='a""" + open("/x") + """{{ $HOME }}\\')
    (training,) = frozen_detection(str(tiny_det_config), [source], (0,), tmp_path)
    text = Path(training.config).read_text()
    load_config(training.config, {})
    assert '{{' not in text and text.count('"""') == 2


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(iters=0), 'wants a number of iterations of 1 or more, got 0'),
        (dict(iters='600'), "got '600'"),
        (dict(iters=True), 'got True'),
    ],
)
def test_iterations_that_are_no_number_are_refused(tiny_det_config, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        leaves(tiny_det_config, tmp_path, **change)


def test_other_configs_and_other_patches_are_refused(tiny_det_config, tiny_seg_config, tmp_path):
    with pytest.raises(ValueError, match='wants the config of a detector with SimpleFeaturePyramid'):
        leaves(tiny_seg_config, tmp_path)
    source = replace(find_source('random/tiny'), patch_size=14)
    with pytest.raises(ValueError, match='patches of 14 px, and pyramids are made from maps of stride 8 or 16'):
        frozen_detection(str(tiny_det_config), [source], (0,), tmp_path)
