"""A training of low-rank differences from the command line: what its checkpoints hold, and what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from running import load_tool, logged_losses, run_tool
from small_configs import small_config

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.frozen_base import initialise
from addp_backbone.checkpoint.storage import read_checkpoint, write_atomically
from addp_backbone.predict import Predictor
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.option_values import check_values
from addp_backbone.runtime.runner import describe_start
from addp_backbone.runtime.saving import SafeCheckpointHook
from addp_backbone.runtime.sharding import check_sharding


def write_base(folder: Path, seed: int) -> Path:
    """Weights of the small TimmViT, whose LayerScale does not begin at nearly nothing."""
    torch.manual_seed(seed)
    tensors = MODELS.build(dict(type='TimmViT', model='test_vit')).vit.state_dict()
    tensors = {name: torch.full_like(x, 0.5) if 'gamma' in name else x for name, x in tensors.items()}
    write_atomically(tensors, folder / f'base_{seed}.pth')
    return folder / f'base_{seed}.pth'


@pytest.fixture(scope='module')
def folder(tiny_ade: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``leaf.py`` and its training of three iterations, ``run``."""
    folder = tmp_path_factory.mktemp('lora')
    cfg = small_config('seg_configs/timm_tiny_upernet.py', tiny_ade, folder)
    init_cfg = dict(type='Pretrained', checkpoint=str(write_base(folder, 0)))
    cfg.model.backbone.update(out_indices=(0, 1, 2, 3), frozen=1, lora=dict(rank=2, alpha=4), init_cfg=init_cfg)
    cfg.train_cfg.update(max_iters=3, val_interval=100)
    cfg.optim_wrapper.optimizer.lr = 0.01
    cfg.default_hooks.checkpoint.interval = 2
    cfg.log_processor = dict(window_size=1, by_epoch=False)
    cfg.dump(folder / 'leaf.py')
    run_tool('train', folder / 'leaf.py', '--work-dir', folder / 'run')
    return folder


def measure(folder: Path, checkpoint: str, *options: str) -> dict[str, float]:
    out = folder / 'metrics.json'
    run_tool(
        'test', folder / 'leaf.py', folder / checkpoint, '--out', out, '--work-dir', folder / 'test', options=options
    )
    return json.loads(out.read_text(encoding='utf-8'))


def test_a_checkpoint_holds_low_rank_differences_and_heads_and_names_its_base(folder: Path) -> None:
    checkpoint = read_checkpoint(folder / 'run' / 'iter_3.pth')
    in_backbone = {name for name in checkpoint['state_dict'] if name.startswith('backbone.')}
    assert in_backbone and all(name.rpartition('.')[2].startswith('lora_') for name in in_backbone)
    assert any(name.startswith('decode_head.') for name in checkpoint['state_dict'])
    note = checkpoint['frozen_base']
    assert note['source'].endswith('base_0.pth') and 'backbone.vit.blocks.3.attn.qkv.weight' in note['names']
    log = next((folder / 'run').glob('2*/*.log')).read_text(encoding='utf-8')
    assert 'low-rank differences of rank 2, scale 2, in attention' in log and 'the first 1 blocks frozen' in log


def test_a_resumed_run_ends_with_the_same_bits(folder: Path) -> None:
    run_tool('train', folder / 'leaf.py', '--work-dir', folder / 'cut', options=('train_cfg.max_iters=2',))
    run_tool('train', folder / 'leaf.py', '--work-dir', folder / 'cut', '--resume')
    assert logged_losses(folder / 'cut')[3] == logged_losses(folder / 'run')[3]
    whole, cut = (read_checkpoint(folder / run / 'iter_3.pth') for run in ('run', 'cut'))
    assert cut['frozen_base'] == whole['frozen_base'] and cut['state_dict'].keys() == whole['state_dict'].keys()
    assert all(torch.equal(tensor, cut['state_dict'][name]) for name, tensor in whole['state_dict'].items())


def test_test_and_predict_take_it_and_a_merged_checkpoint_in_the_plain_config_gives_the_same(folder: Path) -> None:
    run_tool('merge_checkpoint', folder / 'leaf.py', folder / 'run', folder / 'merged.pth')
    plain = ('model.backbone.lora=None', 'model.backbone.init_cfg=None')
    metrics = measure(folder, 'run')
    assert metrics == pytest.approx(measure(folder, 'merged.pth', *plain), abs=1e-3) and 0 <= metrics['mIoU'] <= 100
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    logits = []
    for checkpoint, options in (
        ('run', {}),
        ('merged.pth', {'model.backbone.lora': None, 'model.backbone.init_cfg': None}),
    ):
        model = Predictor(folder / 'leaf.py', folder / checkpoint, options=options).model
        with torch.no_grad():
            logits.append(model.decode_head(model.neck(model.backbone(images))))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)
    base = torch.load(folder / 'base_0.pth')['blocks.3.attn.qkv.weight']
    merged = read_checkpoint(folder / 'merged.pth')
    assert not torch.equal(merged['state_dict']['backbone.vit.blocks.3.attn.qkv.weight'], base)
    assert merged['meta']['dataset_meta']['classes'] and not any('lora' in name for name in merged['state_dict'])


def test_another_base_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = f'model.backbone.init_cfg.checkpoint={write_base(folder, 1)}'
    words = [str(folder / 'leaf.py'), str(folder / 'run'), str(folder / 'x.pth'), '--cfg-options', other]
    assert load_tool('merge_checkpoint').main(words) == 1
    assert 'base_1.pth: name the file that training began with' in capsys.readouterr().err


def test_what_needs_a_whole_checkpoint_says_how_to_make_one(folder: Path, tiny_ade: Path) -> None:
    part = str(folder / 'run' / 'iter_3.pth')
    for init_cfg in (dict(checkpoint=part), dict(checkpoint=part, prefix='backbone.vit')):
        backbone = MODELS.build(dict(type='TimmViT', model='test_vit', init_cfg=dict(init_cfg, type='Pretrained')))
        with pytest.raises(CheckpointError, match=r'make it whole first: python tools/merge_checkpoint\.py'):
            backbone.init_weights()


def test_training_from_adapted_weights_without_lora_is_refused() -> None:
    adapted, plain = (
        MODELS.build(dict(type='TimmViT', model='test_vit', **options)).state_dict()
        for options in (dict(lora=dict(rank=2)), {})
    )
    with pytest.raises(CheckpointError, match=r'x\.pth cannot be started from.*has low-rank differences'):
        describe_start('x.pth', adapted, plain)
    assert 'Start anew, not in the file: vit.blocks.0.attn.qkv.lora_A' in describe_start('x.pth', plain, adapted)


@pytest.mark.parametrize(
    ('options', 'save_base', 'left_out'),
    [
        (dict(lora=dict(rank=2)), None, True),
        (dict(lora=dict(rank=2)), True, False),
        (dict(norms_only=True), None, True),
        (dict(frozen=True), None, False),
        (dict(frozen=True), False, True),
        (dict(), False, False),
    ],
)
def test_the_base_is_left_out_where_it_is_asked_for_and_can_be_had_again(
    options: dict[str, Any], save_base: bool | None, left_out: bool, tmp_path: Path
) -> None:
    model: Any = torch.nn.Module()
    init_cfg = dict(type='Pretrained', checkpoint=str(write_base(tmp_path, 0)))
    model.backbone = MODELS.build(dict(type='TimmViT', model='test_vit', init_cfg=init_cfg, **options))
    runner: Any = SimpleNamespace(model=model, frozen_base=initialise(model, model.backbone.init_weights))

    def saved(**beside: Any) -> dict[str, Any]:
        checkpoint = dict(state_dict=model.state_dict(), **beside)
        SafeCheckpointHook(save_base=save_base).before_save_checkpoint(runner, checkpoint)
        return checkpoint

    assert (
        ('backbone.vit.patch_embed.proj.weight' not in saved()['state_dict']) == left_out == ('frozen_base' in saved())
    )
    assert 'frozen_base' not in saved(ema_state_dict={}), 'averaged weights'
    model.backbone.vit.patch_embed.proj.weight.data += 1  # as load_from may bring others
    assert 'frozen_base' not in saved()


def test_what_a_file_lacks_is_no_part_of_the_frozen_base(tmp_path: Path) -> None:
    arch = dict(width=24, depth=2, num_heads=3)
    source = MODELS.build(dict(type='ADDPViT', arch=arch, pretrain_img_size=64, rel_pos=False))
    write_atomically(source.state_dict(), tmp_path / 'no_cls_token.pth')
    model: Any = torch.nn.Module()
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'no_cls_token.pth'))
    options = dict(arch=arch, img_size=64, out_indices=(1,), frozen=True, init_cfg=init_cfg)
    model.backbone = MODELS.build(dict(type='ADDPSegViT', **options))
    base = initialise(model, model.backbone.init_weights)
    assert base is not None and 'backbone.blocks.1.attn.qkv.weight' in base.names
    kept = {name for name, _ in model.named_parameters()} - set(base.names)
    assert {name.rpartition('.')[2] for name in kept} == {
        'cls_token', 'gamma_1', 'gamma_2', 'relative_position_bias_table'
    }  # fmt: skip


@pytest.mark.parametrize('options', [dict(lora=dict(rnak=8)), dict(frozen=True, norms_only=True), dict(lora=8)])
def test_options_that_cannot_work_are_refused_before_anything_is_built(options: dict[str, Any]) -> None:
    backbone = dict(type='TimmViT', model='test_vit', **options)
    with pytest.raises(LaunchError, match=r'^model\.backbone: '):
        check_values(Config(dict(model=dict(type='EncoderDecoder', backbone=backbone))))


@pytest.mark.parametrize('options', [dict(lora=dict(rank=2)), dict(norms_only=True)])
def test_shards_and_a_part_that_is_trained_do_not_go_together(options: dict[str, Any]) -> None:
    cfg = Config(dict(strategy=dict(type='FSDPStrategy'), model=dict(backbone=dict(type='ADDPViT', **options))))
    with pytest.raises(LaunchError, match='does not go with FSDP'):
        check_sharding(cfg)
