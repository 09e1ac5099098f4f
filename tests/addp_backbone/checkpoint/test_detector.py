"""Whole detectors of ViTDet: every released kind converts, loads strictly and predicts; a gap is refused."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_detector import build, detector_config
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from PIL import Image
from released_detectors import RELEASED, Sizes, shapes
from running import load_tool, logged_losses, run_tool
from small_configs import REPOSITORY
from torch import Tensor

from addp_backbone.checkpoint.detector import convert_detector
from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.predict.predictor import Predictor
from addp_backbone.runtime.runner import check_weights, describe_start

KINDS = ('maskrcnn', 'cascade')
TINY = Sizes(width=24, depth=4, num_heads=2, num_global=2, window=2, grid=8, pretrain_grid=4, channels=8, fc=16)
IMAGE_PX = 16 * TINY.grid


def _on_meta(sizes: Sizes, kind: str) -> dict[str, Tensor]:
    """A file's tensors without their numbers."""
    return {name: torch.empty(shape, device='meta') for name, shape in shapes(sizes, kind).items()}


def _random(kind: str, num_classes: int = 80) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = Sizes(**{**vars(TINY), 'num_classes': num_classes})
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes(sizes, kind).items()}


def _tiny_config(kind: str, num_classes: int = 80) -> Config:
    cfg = detector_config(
        f'vitdet_base_{kind}.py',
        dict(
            img_size=IMAGE_PX,
            pretrain_img_size=16 * TINY.pretrain_grid,
            embed_dim=TINY.width,
            depth=TINY.depth,
            num_heads=TINY.num_heads,
            window_size=TINY.window,
            window_block_indexes=[0, 2],
            out_channels=TINY.channels,
            box_conv=TINY.channels,
            box_fc=TINY.fc,
            mask_conv=TINY.channels,
            num_classes=num_classes,
        ),
    )
    cfg.test_dataloader.dataset.pipeline[1].scale = (IMAGE_PX, IMAGE_PX)
    return cfg


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls tools/convert_checkpoint.py; returns its exit code and what it printed."""
    return lambda *words: (load_tool('convert_checkpoint').main([*map(str, words)]), *capsys.readouterr())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', RELEASED)
def test_every_name_and_shape_of_a_released_file_is_a_tensor_of_its_config(size: str, kind: str) -> None:
    source = _on_meta(RELEASED[size], kind)
    report = convert_detector(source)
    assert report.config == f'det_configs/vitdet_{size}_{kind}.py' and report.num_classes == 80
    assert len(report.state_dict) == len(source) and not report.dropped
    cfg = Config.fromfile(REPOSITORY / report.config)
    with torch.device('meta'):
        model = build(cfg)
    check_weights('the file', report.state_dict, model.state_dict())


@pytest.mark.parametrize('kind', KINDS)
def test_a_pickle_of_a_kind_converts_loads_strictly_and_predicts(convert, kind: str, tmp_path: Path) -> None:
    weights = _random(kind)
    content = {'model': {name: tensor.numpy() for name, tensor in weights.items()}, '__author__': 'somebody'}
    (tmp_path / 'model_final.pkl').write_bytes(pickle.dumps(content))
    code, out, err = convert(tmp_path / 'model_final.pkl', tmp_path / 'detector.pth', '--whole')
    assert code == 0, err
    assert f'detectron2, {kind}' in out and f'mapped    {len(weights)} tensors' in out
    _tiny_config(kind).dump(tmp_path / 'tiny.py')
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).save(tmp_path / 'image.png')
    predictor = Predictor(tmp_path / 'tiny.py', tmp_path / 'detector.pth', score_thr=0.0)
    prediction = predictor(tmp_path / 'image.png')
    assert prediction.classes.names[0] == 'person' and len(prediction.classes.names) == 80


def test_the_order_of_classes_boxes_and_stages_is_kept() -> None:
    weights = _random('cascade', num_classes=3)
    state = convert_detector(weights).state_dict
    for stage in range(3):
        for ours, theirs in (('fc_cls', 'cls_score'), ('fc_reg', 'bbox_pred')):
            got = state[f'roi_head.bbox_head.{stage}.{ours}.weight']
            assert torch.equal(got, weights[f'roi_heads.box_predictor.{stage}.{theirs}.weight'])
        got = state[f'roi_head.bbox_head.{stage}.shared_convs.3.ln.bias']
        assert torch.equal(got, weights[f'roi_heads.box_head.{stage}.conv4.norm.bias'])


@pytest.mark.parametrize('kind', KINDS)
def test_any_head_or_pyramid_tensor_that_is_missing_is_refused_by_its_name(kind: str) -> None:
    weights = _on_meta(TINY, kind)
    for name in weights:
        if not name.startswith('backbone.net.'):
            with pytest.raises(CheckpointError, match=r'missing|Missing: (?!none)'):
                convert_detector({other: tensor for other, tensor in weights.items() if other != name})


@pytest.mark.parametrize('kind', KINDS)
def test_any_head_or_pyramid_tensor_of_another_shape_is_refused(kind: str) -> None:
    weights = _on_meta(TINY, kind)
    for name, tensor in weights.items():
        if not name.startswith('backbone.net.'):
            larger = torch.empty((tensor.shape[0] + 1, *tensor.shape[1:]), device='meta')
            with pytest.raises(CheckpointError, match=r'shape: (?!none)'):
                convert_detector(weights | {name: larger})


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda w: w | {'roi_heads.box_head.fc2.weight': torch.zeros(1)},
            r'Unknown to the model: roi_heads.box_head.fc2.weight',
        ),
        (lambda w: w | {'backbone.net.blocks.0.attn.bias': torch.zeros(1)}, 'backbone.*|blocks.0.attn.bias'),
        (lambda w: w | {'something': torch.zeros(1)}, 'Unknown to the model: something'),
        (lambda w: {n: t for n, t in w.items() if 'blocks.1.mlp.fc1.bias' not in n}, 'Missing: backbone.blocks.1.mlp'),
        (lambda w: {n: t for n, t in w.items() if 'blocks.3.attn.rel_pos_w' not in n}, 'relative positions: backbone'),
        (lambda w: {n: t for n, t in w.items() if not n.startswith('roi_heads')}, 'Leave out --whole'),
        (lambda w: w | {'pixel_mean': torch.tensor([103.53, 116.28, 123.675])}, r'pixel_mean is .* \(RGB\)'),
        (lambda w: w | {'roi_heads.box_predictor.fed_loss_cls_weights': torch.zeros(80)}, 'detector for LVIS'),
    ],
)
def test_a_file_with_a_gap_is_refused_with_the_reason(change: Callable[[dict], dict], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert_detector(change(_random('maskrcnn')))


def test_lvis_heads_are_refused_and_what_is_missing_is_said() -> None:
    with pytest.raises(CheckpointError, match='by sigmoid instead of softmax, 300 detections'):
        convert_detector(_on_meta(Sizes(**{**vars(TINY), 'num_classes': 1203}), 'cascade'))


def test_pixel_statistics_and_stored_anchors_are_dropped_with_a_reason() -> None:
    extra = {'pixel_mean': torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1)}
    extra['proposal_generator.anchor_generator.cell_anchors.0'] = torch.zeros(3, 4)
    assert convert_detector(_random('maskrcnn') | extra).dropped.keys() == extra.keys()


def test_the_tool_refuses_a_gap_and_options_that_do_not_go_with_whole_detectors(convert, tmp_path: Path) -> None:
    weights = _random('maskrcnn')
    del weights['roi_heads.mask_head.deconv.bias']
    torch.save({'model': weights}, tmp_path / 'src.pth')
    code, _, err = convert(tmp_path / 'src.pth', tmp_path / 'dst.pth', '--whole')
    assert code == 1 and 'Missing: roi_head.mask_head.upsample.bias' in err
    code, _, err = convert(tmp_path / 'src.pth', tmp_path / 'dst.pth', '--whole', '--format', 'mae')
    assert code == 1 and 'leave out --for, --format' in err
    assert [path.name for path in tmp_path.iterdir()] == ['src.pth']


def test_positions_keep_the_files_grid_unless_a_size_is_given() -> None:
    weights = _random('maskrcnn')
    assert convert_detector(weights).state_dict['backbone.pos_embed'].shape == (1, 16, TINY.width)
    assert convert_detector(weights, img_size=96).state_dict['backbone.pos_embed'].shape == (1, 36, TINY.width)


@pytest.mark.parametrize('kind, num_stages', [('maskrcnn', 1), ('cascade', 3)])
def test_training_with_other_classes_names_the_layers_that_start_anew(kind: str, num_stages: int) -> None:
    report = convert_detector(_random(kind))
    model = build(_tiny_config(kind, num_classes=3))
    text = describe_start('the.pth', report.state_dict, model.state_dict())
    anew = text.split('number of classes: ')[1].split('. Start anew, not')[0]
    layers = set(re.findall(r'roi_head\.(\S+)\.(?:weight|bias) ', anew))
    assert len(layers) == num_stages * (2 if kind == 'maskrcnn' else 1) + 1
    assert 'conv_logits.weight (80, 8, 1, 1) instead of (3, 8, 1, 1)' in anew
    assert 'not in the file: none' in text and 'not used: none' in text


def test_training_from_a_file_of_another_backbone_is_refused() -> None:
    state = convert_detector(_random('maskrcnn')).state_dict
    model = build(_tiny_config('maskrcnn'))
    with pytest.raises(CheckpointError, match=r'neck.levels.0.0.weight has shape \(48, 12, 2, 2\)'):
        other = state | {'neck.levels.0.0.weight': torch.zeros(48, 12, 2, 2)}
        describe_start('the.pth', other, model.state_dict())
    with pytest.raises(CheckpointError, match=r'0 of \d+ tensors fit'):
        describe_start('the.pth', {'w': torch.zeros(1)}, model.state_dict())


@pytest.fixture
def converted(convert, tmp_path: Path) -> Path:
    """A converted cascade of 80 classes."""
    torch.save({'model': _random('cascade')}, tmp_path / 'source.pth')
    assert convert(tmp_path / 'source.pth', tmp_path / 'detector.pth', '--whole')[0] == 0
    return tmp_path / 'detector.pth'


def _on_tiny_coco(cfg: Config, root: Path) -> Config:
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{root}/'
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = f'{root}/annotations/instances_val2017.json'
    cfg.train_dataloader.dataset.pipeline[2].update(scale=(IMAGE_PX, IMAGE_PX), crop_size=(IMAGE_PX, IMAGE_PX))
    return cfg


def test_the_test_tool_evaluates_a_converted_file(converted: Path, tiny_coco: Path, tmp_path: Path) -> None:
    cfg = _on_tiny_coco(_tiny_config('cascade'), tiny_coco)
    cfg.test_dataloader.dataset.ann_file = cfg.test_evaluator.ann_file = str(_named_as_coco(tiny_coco, tmp_path))
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    cfg.dump(tmp_path / 'leaf.py')
    run_tool('test', tmp_path / 'leaf.py', converted, '--work-dir', tmp_path / 'run', '--out', tmp_path / 'ap.json')
    assert 'coco/bbox_mAP' in (tmp_path / 'ap.json').read_text(encoding='utf-8')


def _named_as_coco(root: Path, folder: Path) -> Path:
    """The validation annotations with COCO's 80 categories; the shapes are persons, bicycles and cars."""
    content = json.loads((root / 'annotations' / 'instances_val2017.json').read_text(encoding='utf-8'))
    names = CocoDataset.METAINFO['classes']
    content['categories'] = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
    (folder / 'val.json').write_text(json.dumps(content), encoding='utf-8')
    return folder / 'val.json'


def test_training_starts_from_a_converted_file_with_other_classes(
    converted: Path, tiny_coco: Path, tmp_path: Path
) -> None:
    cfg = _on_tiny_coco(_tiny_config('cascade', num_classes=3), tiny_coco)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo = dict(classes=('disc', 'box', 'wedge'))
    cfg.train_cfg.update(max_iters=1, val_interval=10)
    cfg.default_hooks.logger.interval = 1
    cfg.load_from = str(converted)
    cfg.dump(tmp_path / 'leaf.py')
    run_tool('train', tmp_path / 'leaf.py', '--work-dir', tmp_path / 'run')
    assert {'s0.loss_cls', 's2.loss_bbox', 'loss_mask'} <= logged_losses(tmp_path / 'run')[1].keys()
    log = next((tmp_path / 'run').glob('*/*.log')).read_text(encoding='utf-8')
    assert 'Start anew, number of classes: roi_head.bbox_head.0.fc_cls.weight (81, 16) instead of (4, 16)' in log
