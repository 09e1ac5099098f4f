"""Every family of timm's plain ViTs as an ONNX file: two blocks, random weights, two batch sizes, with windows."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from addp_backbone.export.build import plan_export
from addp_backbone.export.comparison import Comparison
from addp_backbone.export.onnx_file import PACKAGES, write_onnx
from addp_backbone.export.onnx_model import OnnxModel
from addp_backbone.networks.timm_vit import TimmViT
from addp_backbone.networks.timm_vit.catalogue import build_model
from addp_backbone.networks.vit import ADDPViT

GRID = (5, 8)  # in tokens; tables of relative biases are made for (8, 8)


class Given(NamedTuple):
    """What a comparison wants of a predictor."""

    model: nn.Module
    pipeline: None = None


class TimmModel(nn.Module):
    """A model that is a backbone of timm."""

    def __init__(self, name: str, window_size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        with torch.device('meta'):
            self.patch = build_model(name).patch_embed.patch_size[0]
        self.backbone = TimmViT(
            name, img_size=8 * self.patch, window_size=window_size, global_attn_indices=[1], out_indices=(0, 1)
        )
        for parameter in self.backbone.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)  # tables and LayerScale differ from 0


@pytest.mark.parametrize(
    ('name', 'window_size'),
    [
        ('vit_small_patch14_reg4_dinov2', 3),
        ('deit_tiny_distilled_patch16_224', 3),
        ('beit_base_patch16_224', 3),
        ('vit_relpos_small_patch16_224', 3),
        ('vit_srelpos_small_patch16_224', 0),
        ('vit_small_patch16_dinov3', 3),
        ('eva02_tiny_patch14_224', 0),
        ('vit_small_patch16_rope_mixed_224', 3),
        ('samvit_base_patch16', 0),
    ],
)
def test_every_family_gives_the_same_maps_in_onnxruntime(name: str, window_size: int, tmp_path: Path) -> None:
    for package in PACKAGES:
        pytest.importorskip(package, reason=f'export needs {package} (extra [export])')
    model = TimmModel(name, window_size).eval()
    size = tuple(side * model.patch for side in GRID)
    file = OnnxModel(write_onnx(plan_export(model, 'backbone', size), tmp_path / 'backbone.onnx'))
    for number in (1, 3):
        differences = Comparison(Given(model), file).of_batch(torch.randn(number, 3, *size), [])
        assert [difference.name for difference in differences] == ['map_0', 'map_1']
        assert max(difference.value for difference in differences) < 1e-5, [*map(str, differences)]


class AddpModel(nn.Module):
    """A model that is an ``ADDPViT`` with windows of 5 patches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        arch = dict(width=24, depth=2, num_heads=3)
        self.backbone = ADDPViT(arch, img_size=64, patch_size=8, window_size=5, global_attn_indices=[1])
        for parameter in self.backbone.parameters():
            nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize('size', [(8, 8), (8, 16), (40, 40), (48, 24), (88, 168)])
def test_free_sizes_hold_where_an_image_is_one_window_too(size: tuple[int, int], addp: Comparison) -> None:
    (difference,) = addp.of_batch(torch.randn(2, 3, *size), [])
    assert difference.value < 1e-5, difference


@pytest.fixture(scope='module')
def addp(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    for package in PACKAGES:
        pytest.importorskip(package, reason=f'export needs {package} (extra [export])')
    model = AddpModel().eval()
    file = write_onnx(plan_export(model, 'backbone'), tmp_path_factory.mktemp('addp') / 'backbone.onnx')
    return Comparison(Given(model), OnnxModel(file))
