"""``--evaluate``: the metric of a file is that of what it computes, in the frame of the data set's images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from addp_backbone.export.build import plan_export
from addp_backbone.export.evaluation import evaluate_onnx
from addp_backbone.export.plan import ExportError, Plan
from addp_backbone.runtime.launch import load_config


class TorchFile:
    """Stands for an exported file: its graph in torch."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.description = plan, plan.metadata

    def run(self, images: np.ndarray, sizes: Sequence[Any] | None = None, names: Sequence[str] = ()) -> dict[str, Any]:
        with torch.no_grad():
            outputs = self.plan.graph(torch.from_numpy(images))
        return {name: output.numpy() for name, output in zip(self.plan.outputs, outputs, strict=True)}


class PerfectFile:
    """Stands for a detector's file that finds what is annotated, in pixels of the resized images, with full masks."""

    def __init__(self, annotations: Path) -> None:
        self.coco = json.loads(annotations.read_text(encoding='utf-8'))
        self.images = iter(self.coco['images'])
        sizes: dict[str, Any] = dict(fixed_size=None, multiple=32, smallest=(32, 32))
        self.description = dict(sizes, part='model', task='detection', mask_threshold=0.5)

    def run(self, images: np.ndarray, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
        assert images.shape[2] % 32 == images.shape[3] % 32 == 0
        image, (height, width) = next(self.images), sizes[0]
        found = [one for one in self.coco['annotations'] if one['image_id'] == image['id']]
        scale = np.array([width / image['width'], height / image['height']] * 2)
        corners = np.array([one['bbox'] for one in found]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        return dict(
            boxes=(corners * scale).astype(np.float32)[None],
            scores=np.ones((1, len(found)), np.float32),
            labels=np.array([[one['category_id'] - 1 for one in found]]),
            counts=np.array([len(found)]),
            masks=np.ones((1, len(found), 28, 28), np.float32),
        )


def test_a_file_that_finds_every_object_has_an_ap_of_1(tiny_det_config: Path, tiny_coco: Path) -> None:
    cfg = load_config(str(tiny_det_config))
    init_default_scope(cfg.default_scope)
    file: Any = PerfectFile(tiny_coco / 'annotations/instances_val2017.json')
    metrics = evaluate_onnx(cfg, MODELS.build(cfg.model.data_preprocessor), file)
    assert metrics['coco/bbox_mAP'] == 1
    assert 0 < metrics['coco/segm_mAP'] < 1, 'discs and wedges do not fill their boxes'


def test_a_segmentors_file_has_the_metric_of_the_model(tiny_seg_config: Path) -> None:
    cfg = load_config(str(tiny_seg_config))
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    with torch.no_grad():
        for data in loader:
            evaluator.process(model.test_step(data), data)
    wanted = evaluator.evaluate(len(loader.dataset))
    file: Any = TorchFile(plan_export(model))
    metrics = evaluate_onnx(cfg, model.data_preprocessor, file)
    assert metrics.keys() == wanted.keys() and 1 < wanted['mIoU'] < 99
    assert metrics == pytest.approx(wanted, abs=0.1) and {type(value) for value in metrics.values()} == {float}


def test_a_part_cannot_be_evaluated() -> None:
    file: Any = PerfectFile.__new__(PerfectFile)
    file.description = dict(part='backbone')
    with pytest.raises(ExportError, match="the file has the part 'backbone'; the whole model can be evaluated"):
        evaluate_onnx(None, None, file)
