"""FitToBackbone: a model sees pixels normalised as its backbone's pre-training had them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from running import ROOT

from addp_backbone.predict.predictor import Predictor

DETECTOR, SEGMENTOR = 'det_configs/timm_tiny_maskrcnn.py', 'seg_configs/timm_tiny_upernet.py'
# timm's name -> (mean, std) of pixels in [0, 255]; of Google's own ViTs, and of ImageNet
NORMALISATION = {
    'vit_tiny_patch16_224': ((127.5,) * 3, (127.5,) * 3),
    'vit_small_patch14_dinov2': ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


def write_run(folder: Path, leaf: str, name: str) -> Path:
    """A config of the leaf on the first four blocks of a model, and a checkpoint as training leaves it."""
    path = folder / 'leaf.py'
    backbone = dict(model=name, out_indices=(0, 1, 2, 3), init_cfg=None)
    path.write_text(f'_base_ = {str(ROOT / leaf)!r}\nmodel = dict(backbone={backbone!r})\n')
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict(), 'meta': {}}, folder / 'iter_1.pth')
    return path


@pytest.mark.parametrize(
    ('leaf', 'name'),
    [(DETECTOR, 'vit_tiny_patch16_224'), (SEGMENTOR, 'vit_tiny_patch16_224'), (SEGMENTOR, 'vit_small_patch14_dinov2')],
)
def test_a_trained_model_sees_pixels_normalised_as_in_its_pre_training_and_the_log_says_so(
    leaf: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mean, std = (torch.tensor(values) for values in NORMALISATION[name])
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        predictor = Predictor(write_run(tmp_path, leaf, name), tmp_path / 'iter_1.pth', device='cpu')
    finally:
        logger.removeHandler(caplog.handler)
    assert f'normalisation of {name}: mean [{round(NORMALISATION[name][0][0], 2)}, ' in caplog.text
    red = (200, 30, 10)
    Image.fromarray(np.full((64, 64, 3), red, np.uint8)).save(tmp_path / 'red.png')
    seen: list[torch.Tensor] = []
    predictor.model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    predictor(tmp_path / 'red.png')
    torch.testing.assert_close(seen[0][0, :, 5, 5], (torch.tensor(red) - mean) / std)
