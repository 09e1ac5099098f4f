"""From a detector of detectron2's ViTDet to a checkpoint of ``det_configs/vitdet_*.py``: trunk, pyramid and heads.

:func:`convert_detector` is a pure function; ``tools/convert_checkpoint.py SRC DST --whole`` is its command. Both sides
count classes from 0 with the background last, keep four box deltas a class, and flatten RoIs as (channel, row, column),
so that tensors change names only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from addp_backbone.checkpoint.convert import convert_state_dict
from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.matching import Mismatch, match_tensors, unwrap_state_dict

NUM_BOX_CONVS = NUM_MASK_CONVS = 4
NUM_STAGES = 3
ROI_SIDE, MASK_KERNEL = 7, 2
NUM_LVIS_CLASSES = 1203
LAYER_CONFIGS = {(768, 12, 12): 'base', (1024, 24, 16): 'large', (1280, 32, 16): 'huge'}
PIXELS = {'pixel_mean': (123.675, 116.28, 103.53), 'pixel_std': (58.395, 57.12, 57.375)}
FED_LOSS = 'fed_loss_cls_weights'
LVIS_REFUSAL = (
    'the file is a detector for LVIS (1203 classes, federated loss), which no config here can run: missing are a box '
    'head that scores classes by sigmoid instead of softmax, 300 detections an image from score 0.02, and LVIS AP. '
    'Its backbone and pyramid convert without --whole'
)
# detectron2's name -> ours, of layers; a group that matches is a number, from which the third entry is taken away.
_LAYERS = (
    (r'proposal_generator\.rpn_head\.conv\.conv(\d)', 'rpn_head.rpn_conv.{}.conv', 0),
    (r'proposal_generator\.rpn_head\.objectness_logits', 'rpn_head.rpn_cls', 0),
    (r'proposal_generator\.rpn_head\.anchor_deltas', 'rpn_head.rpn_reg', 0),
    (r'roi_heads\.box_head\.conv(\d)', 'roi_head.bbox_head.shared_convs.{}.conv', 1),
    (r'roi_heads\.box_head\.conv(\d)\.norm', 'roi_head.bbox_head.shared_convs.{}.ln', 1),
    (r'roi_heads\.box_head\.fc1', 'roi_head.bbox_head.shared_fcs.0', 0),
    (r'roi_heads\.box_predictor\.cls_score', 'roi_head.bbox_head.fc_cls', 0),
    (r'roi_heads\.box_predictor\.bbox_pred', 'roi_head.bbox_head.fc_reg', 0),
    (r'roi_heads\.mask_head\.mask_fcn(\d)', 'roi_head.mask_head.convs.{}.conv', 1),
    (r'roi_heads\.mask_head\.mask_fcn(\d)\.norm', 'roi_head.mask_head.convs.{}.ln', 1),
    (r'roi_heads\.mask_head\.deconv', 'roi_head.mask_head.upsample', 0),
    (r'roi_heads\.mask_head\.predictor', 'roi_head.mask_head.conv_logits', 0),
)
_STAGE = re.compile(r'roi_heads\.box_(head|predictor)\.(\d)\.')
_ANCHORS = re.compile(r'proposal_generator\.anchor_generator\.cell_anchors\.\d')
Shapes = dict[str, tuple[int, ...]]


@dataclass
class DetectorReport:
    """What became of a detector's checkpoint.

    Attributes:
        state_dict: Weights by the names of the detector that ``config`` builds; all of them.
        kind: 'maskrcnn' or 'cascade'.
        config: The config that fits, such as ``det_configs/vitdet_base_maskrcnn.py``; None for a ViT of another size.
        num_classes: Classes of the box and mask heads, without the background.
        dropped: Source name -> why the detector has no place for it.
        notes: What was changed on the way, and what a config has to say.
    """

    state_dict: dict[str, Tensor]
    kind: str
    config: str | None
    num_classes: int
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def convert_detector(checkpoint: Mapping[str, Any], img_size: int | None = None) -> DetectorReport:
    """Converts Mask R-CNN or Cascade Mask R-CNN of detectron2's ViTDet project to our names.

    Args:
        checkpoint: Names and tensors (or numpy arrays), or a dict that has them under ``model`` or ``state_dict``.
        img_size: Side in pixels of the pre-training images that the config names (``pretrain_img_size``): position
            embeddings are resized to its grid. None keeps the file's grid, 14 x 14 (224 px) in the released files.

    Returns:
        The weights and what became of every tensor. The source is not changed.

    Raises:
        CheckpointError: If there are no detection heads, the heads are LVIS's, or a tensor is missing, unknown or of
            another shape; the message has all names.
    """
    tensors = _tensors(checkpoint)
    if not any(name.startswith('roi_heads.') for name in tensors):
        raise CheckpointError(
            f'no detection heads found: no tensor is called roi_heads.*; the first names are {list(tensors)[:5]}. '
            'Leave out --whole to convert backbone and pyramid alone'
        )
    is_cascade = any(_STAGE.match(name) for name in tensors)
    num_classes = _count_classes(tensors, is_cascade)
    trunk = {name: tensor for name, tensor in tensors.items() if name.startswith('backbone.')}
    converted = convert_state_dict(trunk, 'detectron2', img_size, None)
    weights = {f'backbone.{name}': tensor for name, tensor in converted.state_dict.items()}
    weights |= {f'neck.{name}': tensor for name, tensor in converted.neck_state_dict.items()}
    report = DetectorReport(weights, 'cascade' if is_cascade else 'maskrcnn', None, num_classes, converted.dropped)
    report.notes += converted.notes
    unknown = _map_heads(report, {name: tensor for name, tensor in tensors.items() if name not in trunk})
    _refuse_gaps(report, converted.missing, unknown)
    _describe_backbone(report)
    return report


def _tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in unwrap_state_dict(checkpoint).items():
        if not isinstance(value, (Tensor, np.ndarray)):
            raise CheckpointError(f'{name} is a {type(value).__name__}, wanted a tensor')
        tensors[name.removeprefix('module.')] = torch.as_tensor(value)
    return tensors


def _count_classes(tensors: dict[str, Tensor], is_cascade: bool) -> int:
    """Classes without the background, by the (last) classifier's rows; refuses LVIS."""
    name = f'roi_heads.box_predictor.{f"{NUM_STAGES - 1}." if is_cascade else ""}cls_score.weight'
    if name not in tensors:
        raise CheckpointError(f'{name} is missing, so the number of classes is unknown')
    num_classes = tensors[name].shape[0] - 1
    if num_classes == NUM_LVIS_CLASSES or any(name.endswith(FED_LOSS) for name in tensors):
        raise CheckpointError(LVIS_REFUSAL)
    return num_classes


def _map_heads(report: DetectorReport, heads: dict[str, Tensor]) -> list[str]:
    """Renames the heads' tensors into the report; returns the names that nobody can explain."""
    unknown = []
    for name, tensor in heads.items():
        target = _our_name(name)
        if target is not None:
            report.state_dict[target] = tensor
        elif name in PIXELS:
            if not torch.allclose(tensor.flatten().float(), torch.tensor(PIXELS[name])):
                raise CheckpointError(f"{name} is {tensor.flatten().tolist()}, wanted ViTDet's {PIXELS[name]} (RGB)")
            report.dropped[name] = "the config's data_preprocessor has the same values"
        elif _ANCHORS.fullmatch(name):
            report.dropped[name] = 'anchors follow from the config'
        else:
            unknown.append(name)
    return unknown


def _our_name(name: str) -> str | None:
    stage = _STAGE.match(name)
    layer, _, kind = (name.replace(f'.{stage[2]}.', '.', 1) if stage else name).rpartition('.')
    for pattern, target, first in _LAYERS:
        match = re.fullmatch(pattern, layer)
        if match:
            ours = target.format(*(int(number) - first for number in match.groups()))
            return f'{ours.replace(".bbox_head.", f".bbox_head.{stage[2]}.") if stage else ours}.{kind}'
    return None


def _refuse_gaps(report: DetectorReport, missing_in_trunk: list[str], unknown: list[str]) -> None:
    shapes = _pyramid_shapes(report.state_dict)
    shapes |= _head_shapes(report.state_dict, report.num_classes, report.kind == 'cascade')
    above_trunk = {name: value for name, value in report.state_dict.items() if not name.startswith('backbone.')}
    found = match_tensors(above_trunk, shapes)
    missing = [f'backbone.{name}' for name in missing_in_trunk] + found.missing
    mismatch = Mismatch(missing, unknown + found.unexpected, found.shapes, found.kinds)
    if mismatch:
        raise CheckpointError(f"the file is no detector of detectron2's ViTDet project. {mismatch}")


def _rows(found: dict[str, Tensor], name: str) -> int:
    """Output channels of a layer; 0 if it is missing, which is reported as such."""
    return found[name].shape[0] if name in found and found[name].ndim else 0


def _layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    return {f'{name}.weight': shape} | ({f'{name}.bias': shape[:1]} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f'{name}.weight': (width,), f'{name}.bias': (width,)}


def _pyramid_shapes(found: dict[str, Tensor]) -> Shapes:
    """Names and shapes of ``SimpleFeaturePyramid`` with ViTDet's four levels; sizes are read off the tensors."""
    width = _rows(found, 'backbone.patch_embed.proj.bias')
    channels = _rows(found, 'neck.levels.2.0.weight')
    half, quarter = width // 2, width // 4

    def two_convs(level: str, first: int, inputs: int) -> Shapes:
        return (
            _layer(f'{level}.{first}', channels, inputs, 1, 1, bias=False)
            | _norm(f'{level}.{first + 1}', channels)
            | _layer(f'{level}.{first + 2}', channels, channels, 3, 3, bias=False)
            | _norm(f'{level}.{first + 3}', channels)
        )

    def upsampling(name: str, inputs: int, outputs: int) -> Shapes:  # transposed: inputs come first
        return {f'{name}.weight': (inputs, outputs, 2, 2), f'{name}.bias': (outputs,)}

    return (
        upsampling('neck.levels.0.0', width, half)
        | _norm('neck.levels.0.1', half)
        | upsampling('neck.levels.0.3', half, quarter)
        | two_convs('neck.levels.0', 4, quarter)
        | upsampling('neck.levels.1.0', width, half)
        | two_convs('neck.levels.1', 1, half)
        | two_convs('neck.levels.2', 0, width)
        | two_convs('neck.levels.3', 1, width)
    )


def _head_shapes(found: dict[str, Tensor], num_classes: int, is_cascade: bool) -> Shapes:
    """Names and shapes of RPN, box heads and mask head; widths are read off the tensors."""
    inputs = _rows(found, 'neck.levels.2.0.weight')
    num_anchors, width = _rows(found, 'rpn_head.rpn_cls.weight'), _rows(found, 'rpn_head.rpn_conv.0.conv.weight')
    shapes = _layer('rpn_head.rpn_conv.0.conv', width, inputs, 3, 3)
    shapes |= _layer('rpn_head.rpn_conv.1.conv', width, width, 3, 3)
    shapes |= _layer('rpn_head.rpn_cls', num_anchors, width, 1, 1)
    shapes |= _layer('rpn_head.rpn_reg', 4 * num_anchors, width, 1, 1)
    for stage in [f'.{i}' for i in range(NUM_STAGES)] if is_cascade else ['']:
        head = f'roi_head.bbox_head{stage}'
        width = _rows(found, f'{head}.shared_convs.0.conv.weight')
        hidden = _rows(found, f'{head}.shared_fcs.0.weight')
        for i in range(NUM_BOX_CONVS):
            shapes |= _layer(f'{head}.shared_convs.{i}.conv', width, width if i else inputs, 3, 3, bias=False)
            shapes |= _norm(f'{head}.shared_convs.{i}.ln', width)
        shapes |= _layer(f'{head}.shared_fcs.0', hidden, width * ROI_SIDE**2)
        shapes |= _layer(f'{head}.fc_cls', num_classes + 1, hidden)
        shapes |= _layer(f'{head}.fc_reg', 4 if is_cascade else 4 * num_classes, hidden)
    width = _rows(found, 'roi_head.mask_head.convs.0.conv.weight')
    for i in range(NUM_MASK_CONVS):
        shapes |= _layer(f'roi_head.mask_head.convs.{i}.conv', width, width if i else inputs, 3, 3, bias=False)
        shapes |= _norm(f'roi_head.mask_head.convs.{i}.ln', width)
    shapes |= _layer('roi_head.mask_head.upsample', width, width, MASK_KERNEL, MASK_KERNEL)
    return shapes | _layer('roi_head.mask_head.conv_logits', num_classes, width, 1, 1)


def _describe_backbone(report: DetectorReport) -> None:
    """Checks the relative positions, which a trunk may lack but a detector may not, and finds the config that fits."""
    weights = report.state_dict
    depth = sum(name.endswith('.attn.qkv.weight') for name in weights)
    width = weights['backbone.patch_embed.proj.bias'].shape[0]
    tables = [f'backbone.blocks.{i}.attn.rel_pos_{axis}' for i in range(depth) for axis in 'hw']
    absent = [name for name in tables if name not in weights]
    if absent:
        raise CheckpointError(f'missing are tables of relative positions: {", ".join(absent)}')
    head_width = weights[tables[0]].shape[-1]
    wrong = [
        f'{name} {tuple(weights[name].shape)}'
        for name in tables
        if weights[name].ndim != 2 or weights[name].shape[1] != head_width or weights[name].shape[0] % 2 == 0
    ]
    if wrong or width % head_width:
        raise CheckpointError(
            f'relative positions need (2 n - 1, {head_width}) numbers with {width} a multiple of {head_width}, '
            f'got {", ".join(wrong) or tables[0]}'
        )
    arch = LAYER_CONFIGS.get((width, depth, width // head_width))
    lengths = [weights[name].shape[0] for name in tables[::2]]
    global_blocks = [i for i, length in enumerate(lengths) if length == max(lengths)]
    if arch is not None:
        report.config = f'det_configs/vitdet_{arch}_{report.kind}.py'
    report.notes.append(
        f'ViT of width {width}, depth {depth}, {width // head_width} heads; blocks with the longest tables of relative '
        f'positions (global attention): {global_blocks}; {report.num_classes} classes'
    )
