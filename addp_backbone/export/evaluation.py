"""AP or mIoU of an exported file on a config's test data, by the config's own data set and metric."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from torch.nn import functional as F

from addp_backbone.export.onnx_model import OnnxModel, class_map_of, detections_of
from addp_backbone.export.plan import ExportError
from addp_backbone.export.preprocessing import padded_size


def evaluate_onnx(cfg: Any, preprocessor: Any, onnx_model: OnnxModel) -> dict[str, float]:
    """Tests a file as ``tools/test.py`` tests a checkpoint.

    Args:
        cfg: Config with ``test_dataloader`` and ``test_evaluator``.
        preprocessor: The model's ``data_preprocessor``.
        onnx_model: The file; a whole detector or segmentor.

    Returns:
        Metric -> value.

    Raises:
        ExportError: If the file is a part, or an image does not fit its fixed size.
    """
    if onnx_model.description['part'] != 'model':
        raise ExportError(f'the file has the part {onnx_model.description["part"]!r}; the whole model can be evaluated')
    loader = Runner.build_dataloader(cfg.test_dataloader)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for data in loader:
        prepared = preprocessor(data, False)
        samples = [
            predict(onnx_model, *pair) for pair in zip(prepared['inputs'], prepared['data_samples'], strict=True)
        ]
        evaluator.process(samples, data)
    return {name: float(value) for name, value in evaluator.evaluate(len(loader.dataset)).items()}


def predict(onnx_model: OnnxModel, image: torch.Tensor, sample: Any) -> Any:
    """Adds an image's prediction to its data sample.

    Args:
        onnx_model: The file.
        image: (3, H, W) as the preprocessor gives it.
        sample: With ``img_shape`` and ``ori_shape``.

    Returns:
        The sample with ``pred_instances`` or ``pred_sem_seg``.
    """
    about = onnx_model.description
    size, original = tuple(sample.img_shape[:2]), tuple(sample.ori_shape[:2])
    height, width = image.shape[-2:]
    padded = padded_size((height, width), about)
    if padded[0] < height or padded[1] < width:
        raise ExportError(f'{sample.img_path} has {height} x {width} px, the file takes {padded[0]} x {padded[1]}')
    images = F.pad(image, (0, padded[1] - width, 0, padded[0] - height))[None].cpu().numpy()
    if about['task'] == 'segmentation':
        class_map = class_map_of(onnx_model.run(images, names=['logits'])['logits'][0], size, original[::-1])
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(class_map.astype('int64'))[None])
        return sample
    found = detections_of(onnx_model.run(images, [size]), 0, size, original, about['mask_threshold'])
    instances = InstanceData(
        bboxes=torch.from_numpy(found.boxes),
        scores=torch.from_numpy(found.scores),
        labels=torch.from_numpy(found.labels),
    )
    if found.masks is not None:
        instances.masks = torch.from_numpy(found.masks)
    sample.pred_instances = instances
    return sample
