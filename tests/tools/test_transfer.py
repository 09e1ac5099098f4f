"""Transfer at the published sizes: released checkpoint -> conversion -> one iteration of detector and segmentor.

The checkpoints are synthetic: every name and shape of the published files, with values that are constant along all but
the last axis (so that the files stay small).
"""

import argparse
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from running import run_main

from addp_backbone.checkpoint.convert import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
INPUT_PX = 64


def write_released_checkpoint(path, size):
    """A training checkpoint as the published code writes it, tokenizer and predictor included."""
    torch.manual_seed(0)
    golden = ROOT / 'tests/golden'
    shapes = {
        prefix + name: shape
        for prefix, file in (
            ('', f'addp_vit_{size}_patch16'),
            ('token_predictor.', f'mage_vit_{size}_patch16'),
            ('vqgan.', 'vqgan_jax_strongaug'),
            ('token_predictor.vqgan.', 'vqgan_jax_strongaug'),
        )
        for name, shape in json.loads((golden / f'{file}.keys.json').read_text()).items()
    }
    model = {name: (torch.randn(shape[-1]) * 0.02).expand(shape) for name, shape in shapes.items()}
    torch.save({'model': model, 'epoch': 1599, 'args': argparse.Namespace(batch_size=64)}, path)
    return model


@pytest.fixture(scope='module', params=['base', pytest.param('large', marks=pytest.mark.long)])
def converted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = write_released_checkpoint(folder / 'released.pth', request.param)
    result = run_main('convert_checkpoint', folder / 'released.pth', folder / 'backbone.safetensors')
    assert result.returncode == 0, result.stderr
    return request.param, model, folder / 'backbone.safetensors', folder / 'released.pth'


def load_config(name, checkpoint):
    cfg = Config.fromfile(ROOT / name)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    cfg.model.backbone.img_size = INPUT_PX
    init_default_scope(cfg.default_scope)
    return cfg


def batch_of(scope, inputs, side):
    """One training sample with one object, or one labelled image, in the form the model's own data pipeline gives."""
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
        from mmengine.structures import InstanceData

        masks = torch.zeros(1, side, side)
        masks[:, 10:40, 8:50] = 1
        sample = DetDataSample(metainfo=dict(img_shape=(side, side), ori_shape=(side, side), scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8.0, 10.0, 50.0, 40.0]]),
            labels=torch.tensor([3]),
            masks=BitmapMasks(masks.numpy().astype('uint8'), side, side),
        )
    else:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        sample = SegDataSample(metainfo=dict(img_shape=(side, side)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, side, side)))
    return dict(inputs=[inputs], data_samples=[sample])


@pytest.mark.parametrize('task', ['det_configs/addp_{}_maskrcnn.py', 'seg_configs/addp_{}_upernet.py'])
def test_a_released_checkpoint_loads_into_the_configs_and_base_trains_one_iteration(converted, task):
    size, source, checkpoint, released = converted
    segments = task.startswith('seg')  # UperNet's backbone keeps the class token and reads the released file itself
    cfg = load_config(task.format(size), released if segments else checkpoint)
    if segments:
        cfg.model.backbone.img_size = 256  # as in pre-training, so that positions stay as they are
    cfg.model.data_preprocessor.pop('pad_size_divisor' if cfg.default_scope == 'mmdet' else 'batch_augments', None)
    if cfg.default_scope == 'mmseg':  # what tools/train.py does where SyncBN cannot run
        from addp_backbone.runtime.launch import fit_to_device

        fit_to_device(cfg, cuda=False)
        cfg.model.data_preprocessor.size = (256, 256)
    model = MODELS.build(cfg.model)
    model.init_weights()
    own = model.backbone.state_dict()
    for name in (
        'patch_embed.proj.weight',
        'blocks.0.attn.qkv.bias',
        f'blocks.{len(model.backbone.blocks) - 1}.mlp.fc2.weight',
    ):
        torch.testing.assert_close(own[name], source[name])
    torch.testing.assert_close(own['pos_embed'], source['pos_embed'] if segments else source['pos_embed'][:, 1:])
    if segments:
        torch.testing.assert_close(own['cls_token'], source['cls_token'])
    if size == 'large':
        return
    for module in model.modules():  # pooling to 1 x 1 leaves BatchNorm one value a channel at batch size 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    side = cfg.model.backbone.img_size
    batch = model.data_preprocessor(
        batch_of(cfg.default_scope, torch.randint(0, 256, (3, side, side), dtype=torch.uint8), side), training=True
    )
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    before = own['blocks.0.attn.qkv.weight'].clone()
    optimizer.step()
    assert loss.isfinite()
    assert not torch.equal(model.backbone.blocks[0].attn.qkv.weight, before)


def test_the_converted_file_holds_the_trunk_and_nothing_else(converted):
    size, _, checkpoint, _ = converted
    names = read_checkpoint(checkpoint)
    depth = {'base': 12, 'large': 24}[size]
    assert len(names) == 12 * depth + 5  # 12 tensors a block; patch embedding (2), positions, tokenizer_norm (2)
