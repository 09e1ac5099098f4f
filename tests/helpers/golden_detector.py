"""detectron2's golden detector in our model: its weights, images and scenes, at the sizes that the JSON file gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from safetensors.torch import load_file
from small_configs import REPOSITORY
from torch import Tensor, nn

from addp_backbone.checkpoint.detector import convert_detector

SCENES = ('plain', 'small', 'outside')


def detector_config(leaf: str, sizes: dict[str, Any]) -> Config:
    """A leaf of det_configs with other sizes.

    Args:
        leaf: File name in det_configs.
        sizes: ``img_size``, ``embed_dim``, ``depth``, ``num_heads``, ``window_size``, ``window_block_indexes``,
            ``pretrain_img_size``, ``out_channels``, ``box_conv``, ``box_fc``, ``mask_conv`` and ``num_classes``.
    """
    cfg = Config.fromfile(REPOSITORY / 'det_configs' / leaf)
    model = cfg.model
    windows = sizes['window_block_indexes']
    model.data_preprocessor.pad_size_divisor = sizes['img_size']
    model.backbone.update(
        arch=dict(width=sizes['embed_dim'], depth=sizes['depth'], num_heads=sizes['num_heads']),
        img_size=sizes['img_size'],
        pretrain_img_size=sizes['pretrain_img_size'],
        window_size=sizes['window_size'],
        global_attn_indices=[i for i in range(sizes['depth']) if i not in windows],
        drop_path_rate=0.0,
        init_cfg=None,
    )
    channels = sizes['out_channels']
    model.neck.update(in_channels=sizes['embed_dim'], out_channels=channels)
    model.rpn_head.update(in_channels=channels, feat_channels=channels)
    roi_head = model.roi_head
    roi_head.bbox_roi_extractor.out_channels = roi_head.mask_roi_extractor.out_channels = channels
    for head in roi_head.bbox_head if isinstance(roi_head.bbox_head, list) else [roi_head.bbox_head]:
        head.update(in_channels=channels, conv_out_channels=sizes['box_conv'], fc_out_channels=sizes['box_fc'])
        head.num_classes = sizes['num_classes']
    mask_head = roi_head.mask_head
    mask_head.update(in_channels=channels, conv_out_channels=sizes['mask_conv'], num_classes=sizes['num_classes'])
    return cfg


def build(cfg: Config) -> nn.Module:
    """Builds the detector in mmdet's scope."""
    init_default_scope('mmdet')
    return MODELS.build(cfg.model)


class GoldenDetector:
    """The golden values beside our detector with the same weights.

    Args:
        folder: Where ``vitdet_detector_tiny.{json,weights.safetensors,outputs.safetensors}`` lie.

    Attributes:
        model: Our Mask R-CNN with detectron2's weights, converted as ``--whole`` does.
        outputs: detectron2's tensors by name.
        sizes: The JSON file.
        names: detectron2's name of a parameter -> ours.
    """

    def __init__(self, folder: Path, name: str = 'vitdet_detector_tiny') -> None:
        self.sizes = json.loads((folder / f'{name}.json').read_text(encoding='utf-8'))
        self.outputs = load_file(folder / f'{name}.outputs.safetensors')
        weights = load_file(folder / f'{name}.weights.safetensors')
        self.report = convert_detector(weights)
        ours = {tensor.data_ptr(): name for name, tensor in self.report.state_dict.items()}
        self.names = {name: ours.get(tensor.data_ptr(), 'backbone.pos_embed') for name, tensor in weights.items()}
        self.model = build(detector_config('addp_base_maskrcnn.py', self.sizes))
        self.model.load_state_dict(self.report.state_dict, strict=True)
        self.num_images = len(self.sizes['image_sizes'])

    def batch(self, scene: str | None = None, masks: str = 'polygons') -> dict[str, Any]:
        """The preprocessed images, with a scene's objects and their masks as 'polygons' or 'bitmaps'."""
        samples = []
        for i in range(self.num_images):
            (height, width), original = self.sizes['image_sizes'][i], self.sizes['output_sizes'][i]
            meta = dict(img_shape=(height, width), ori_shape=tuple(original))
            sample = DetDataSample(metainfo=meta | dict(scale_factor=(width / original[1], height / original[0])))
            if scene:
                sample.gt_instances = self.objects(scene, i, masks)
            samples.append(sample)
        images = [self.outputs[f'image_{i}'].flip(0) for i in range(self.num_images)]  # RGB; ours loads BGR
        return self.model.data_preprocessor(dict(inputs=images, data_samples=samples), training=scene is not None)

    def objects(self, scene: str, i: int, masks: str = 'polygons') -> InstanceData:
        """A scene's objects in image i."""
        record, size = self.sizes['scenes'][scene]['objects'][i], self.sizes['image_sizes'][i]
        if masks == 'polygons':
            outlines = PolygonMasks([[np.array(p) for p in polygons] for polygons in record['polygons']], *size)
        else:
            bits = np.unpackbits(self.outputs[f'{scene}.gt_masks_{i}'].numpy())
            outlines = BitmapMasks(bits.reshape(-1, *size), *size)
        return InstanceData(
            bboxes=torch.tensor(record['boxes']).reshape(-1, 4),
            labels=torch.tensor(record['classes'], dtype=torch.long),
            masks=outlines,
        )

    def losses(self, scene: str, masks: str = 'polygons') -> dict[str, Tensor]:
        """Our losses on detectron2's samples of anchors and boxes, by detectron2's names."""
        self.model.train()
        self.model.rpn_head.sampler = _Recorded(self._anchors(scene))
        self.model.roi_head.bbox_sampler = _Recorded(self._rois(scene))
        batch = self.batch(scene, masks)
        losses = self.model(batch['inputs'], batch['data_samples'], mode='loss')
        names = dict(loss_rpn_loc='loss_rpn_bbox', loss_box_reg='loss_bbox')
        wanted = self.sizes['scenes'][scene]['losses']
        return {name: _sum(losses[names.get(name, name)]) for name in wanted}

    def gradients(self, scene: str) -> dict[str, Tensor]:
        """Gradients of the sum of a scene's losses, by detectron2's names of the parameters; masks are bitmaps."""
        self.model.zero_grad()
        torch.stack([loss.sum() for loss in self.losses(scene, 'bitmaps').values()]).sum().backward()
        parameters = dict(self.model.named_parameters())
        grads = {name: parameters[ours].grad for name, ours in self.names.items()}
        return {name: torch.zeros(()) if grad is None else grad for name, grad in grads.items()}

    def _anchors(self, scene: str) -> Callable[[int, Any, InstanceData, InstanceData], SamplingResult]:
        def sample(i: int, assigned: Any, anchors: InstanceData, truth: InstanceData) -> SamplingResult:
            positive, negative = (self.outputs[f'{scene}.rpn_{kind}_{i}'].long() for kind in ('positive', 'negative'))
            assert (assigned.gt_inds[positive] > 0).all() and (assigned.gt_inds[negative] == 0).all()
            flags = torch.zeros(len(anchors.priors), dtype=torch.uint8)
            return SamplingResult(positive, negative, anchors.priors, truth.bboxes, assigned, flags)

        return sample

    def _rois(self, scene: str) -> Callable[[int, Any, InstanceData, InstanceData], SamplingResult]:
        def sample(i: int, assigned: Any, proposals: InstanceData, truth: InstanceData) -> SamplingResult:
            boxes, classes = self.outputs[f'{scene}.roi_boxes_{i}'], self.outputs[f'{scene}.roi_classes_{i}']
            assigner = self.model.roi_head.bbox_assigner
            assigned = assigner.assign(InstanceData(priors=boxes), truth)
            is_object = classes < self.sizes['num_classes']
            assert torch.equal(assigned.gt_inds > 0, is_object)
            flags = torch.zeros(len(boxes), dtype=torch.uint8)
            positive, negative = is_object.nonzero()[:, 0], (~is_object).nonzero()[:, 0]
            return SamplingResult(positive, negative, boxes, truth.bboxes, assigned, flags)

        return sample


class _Recorded:
    """Stands for a sampler; each image of the batch gets what detectron2 drew for it."""

    def __init__(self, sample: Callable[[int, Any, InstanceData, InstanceData], SamplingResult]) -> None:
        self.draw = sample
        self.image = 0

    def sample(self, assigned: Any, priors: InstanceData, truth: InstanceData, **_: Any) -> SamplingResult:
        self.image += 1
        return self.draw(self.image - 1, assigned, priors, truth)


def _sum(loss: Tensor | list[Tensor]) -> Tensor:
    return torch.stack(list(loss)).sum() if isinstance(loss, list) else loss
