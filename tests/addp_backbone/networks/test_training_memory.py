"""The formula of training memory against what torch keeps: a real step on a CPU, the CUDA path on fake tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from addp_backbone import ADDPViT, SimpleFeaturePyramid
from addp_backbone.layers import attention
from addp_backbone.layers.attention import Kernel
from addp_backbone.networks.arch import Arch, get_arch
from addp_backbone.networks.training_memory import (
    block_parameters,
    estimate,
    head_parameters,
    pyramid_activations,
    pyramid_parameters,
    vit_activations,
    vit_parameters,
)

ROOT = Path(__file__).resolve().parents[3]
SMALL = Arch(width=32, depth=4, num_heads=2)


def test_weights_gradients_and_adamws_state_are_those_of_a_step_on_a_cpu():
    vit, neck = ADDPViT(SMALL, img_size=64, window_size=14), SimpleFeaturePyramid(32)
    parameters = [*vit.parameters(), *neck.parameters()]
    optimizer = torch.optim.AdamW(parameters)
    sum(level.mean() for level in neck(vit(torch.randn(1, 3, 64, 64)))).backward()
    optimizer.step()
    expected = vit_parameters(SMALL, 64) + pyramid_parameters(32)
    assert sum(p.nbytes for p in parameters) == 4 * expected
    assert sum(p.grad.nbytes for p in parameters) == 4 * expected
    moments = [x for state in optimizer.state.values() for x in state.values() if x.ndim]
    assert sum(x.nbytes for x in moments) == 8 * expected


@pytest.mark.parametrize('arch', ['base', 'huge'])
def test_the_number_of_weights_is_that_of_the_leafs_detector(arch):
    path = 'det_configs/addp_base_maskrcnn.py' if arch == 'base' else 'det_configs/vitdet_huge_maskrcnn.py'
    cfg = Config.fromfile(ROOT / path)
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ADDPViT, '_init_from_scratch', lambda self: None)
        model = MODELS.build(cfg.model)
    number = sum(p.numel() for p in model.parameters())
    size = get_arch(arch)
    extra = (model.backbone.pos_embed.shape[1] - 256) * size.width  # of other pre-training images
    assert number == vit_parameters(size, 1024) + pyramid_parameters(size.width) + head_parameters() + extra


def kept_bytes(forward, weights: list[nn.Module]) -> float:
    """Bytes of the storages that a forward pass keeps, without weights and their copies in 16 bits."""
    shapes = {p.shape for module in weights for p in module.parameters()}
    shapes |= {torch.Size(reversed(shape)) for shape in shapes}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.shape not in shapes and x.numel() > 10000:  # nor tables and indices
            kept.setdefault(x.untyped_storage()._cdata, x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        forward()
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@pytest.mark.parametrize(('arch', 'amp'), [('base', True), ('base', False), ('huge', True)])
def test_activations_are_what_the_cuda_path_keeps_at_1024_px(arch, amp, monkeypatch):
    monkeypatch.setattr(attention, 'choose_kernel', lambda *_, **__: Kernel.TRITON)
    monkeypatch.setattr(ADDPViT, '_init_from_scratch', lambda self: None)
    size = get_arch(arch)
    with FakeTensorMode(), torch.device('cuda'):
        vit, neck = ADDPViT(arch), SimpleFeaturePyramid(size.width)
        images = torch.empty(1, 3, 1024, 1024)
        torch.set_autocast_enabled('cuda', amp)
        torch.set_autocast_dtype('cuda', torch.bfloat16)
        try:
            maps: list[Tensor] = []
            of_backbone = kept_bytes(lambda: maps.extend(vit(images)), [vit])
            of_pyramid = kept_bytes(lambda: neck(maps), [neck])
        finally:
            torch.set_autocast_enabled('cuda', False)
    assert vit_activations(size, 1024, amp) == pytest.approx(of_backbone, rel=0.02)
    assert pyramid_activations(size.width, 1024, amp) == pytest.approx(of_pyramid, rel=0.05)


def test_sharding_divides_weights_and_checkpointing_shrinks_activations():
    ddp, fsdp = estimate('huge', 8), estimate('huge', 8, shards=8)
    assert fsdp.optimizer == ddp.optimizer / 8 and fsdp.activations == ddp.activations
    assert estimate('huge', 8, with_cp=True).activations < 0.4 * ddp.activations
    assert ddp.parameters > 4 * 32 * block_parameters(1280)
    assert estimate('base', 8).total_gib < 80 < estimate('huge', 16).total_gib
