"""The base models as ONNX files: random weights, two sizes, two batch sizes. About 6 GB of memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mmengine.config import Config
from small_configs import REPOSITORY
from small_exports import batch, build, samples

from addp_backbone.export.build import plan_export
from addp_backbone.export.comparison import Comparison
from addp_backbone.export.onnx_file import PACKAGES, write_onnx
from addp_backbone.export.onnx_model import OnnxModel


class Given:
    """What a comparison wants of a predictor."""

    def __init__(self, model: Any) -> None:
        self.model, self.pipeline = model, None


@pytest.fixture(scope='module', params=['det_configs/addp_base_maskrcnn.py', 'seg_configs/addp_base_upernet.py'])
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    """A base model beside its file, which takes any size."""
    for package in PACKAGES:
        pytest.importorskip(package, reason=f'export needs {package} (extra [export])')
    cfg = Config.fromfile(REPOSITORY / request.param)
    cfg.model.backbone.init_cfg = None
    model = build(cfg)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # scores that differ without saturating, and boxes that stay near their proposals
            torch.nn.init.kaiming_normal_(parameter, nonlinearity='linear')
            parameter.data *= 3 if 'fc_cls' in name else 0.1 if 'reg' in name else 1
    file = tmp_path_factory.mktemp('base') / 'model.onnx'
    write_onnx(plan_export(model), file)
    yield Comparison(Given(model), OnnxModel(file))
    file.unlink()  # 0.5 GB


@pytest.mark.parametrize(('number', 'height', 'width'), [(1, 512, 512), (2, 512, 640)])
def test_a_base_model_gives_the_same_in_onnxruntime(compared: Comparison, number: int, height: int, width: int) -> None:
    images, sizes = batch(number, height, width)
    differences = compared.of_batch(images, samples(sizes, (height, width)))
    print(*differences, sep='\n')  # noqa: T201
    assert differences and not any(difference.too_large for difference in differences), [*map(str, differences)]
