"""From a model to a plan: its parts in forms that trace, and the sizes that they take."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from addp_backbone.export.detector import DetectorGraph
from addp_backbone.export.features import PartGraph, neck_of
from addp_backbone.export.linear_maps import replace_pooling, resizing_matrix
from addp_backbone.export.plan import PARTS, ExportError, Plan, Sizes
from addp_backbone.export.segmentor import SegmentorGraph, window_geometry
from addp_backbone.export.vit import TracedViT
from addp_backbone.networks.segmentation_vit import ADDPSegViT
from addp_backbone.networks.timm_vit import TimmViT
from addp_backbone.networks.timm_vit.trunks import SamTrunk
from addp_backbone.networks.vit import ADDPViT
from addp_backbone.tuning.lora import merge_lora


class ResizedViT(nn.Module):
    """A ``TimmViT`` whose images are resized by matrices.

    Args:
        vit: The backbone; copied.
        size: Height and width of the images, in pixels.
    """

    rows: Tensor
    cols: Tensor

    def __init__(self, vit: TimmViT, size: tuple[int, int]) -> None:
        super().__init__()
        self.vit = copy.copy(vit)
        resized = [side // vit.stride * vit.patch_size for side in size]
        self.vit.stride = vit.patch_size
        for name, length, new_length in zip(('rows', 'cols'), size, resized, strict=True):
            self.register_buffer(name, resizing_matrix(length, new_length), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps images (B, 3, H, W) to feature maps."""
        return self.vit(self.rows @ images @ self.cols.t())


def plan_export(
    model: Any, part: str = 'model', size: Sequence[int] | None = None, preprocessing: Mapping[str, Any] | None = None
) -> Plan:
    """Decides how a model is exported.

    Args:
        model: A detector of mmdet or a segmentor of mmseg, with weights; for ``backbone`` and ``neck`` any model that
            has them.
        part: One of :data:`PARTS`.
        size: Fixed height and width of the inputs in pixels; None leaves them free where that is possible.
        preprocessing: What :func:`addp_backbone.export.preprocessing.describe_preprocessing` returns; goes into the
            metadata, and its ``longest`` gives the size of a graph that cannot have free sizes.

    Returns:
        The plan. The model is not changed.

    Raises:
        ExportError: If the model, the part or the size cannot be had.
    """
    if part not in PARTS:
        raise ExportError(f'part is {part!r}, wanted one of {", ".join(PARTS)}')
    backbone = getattr(model, 'backbone', None)
    if backbone is None:
        raise ExportError(
            f'{type(model).__name__} has no backbone: only detectors, segmentors and classifiers have one'
        )
    if part == 'neck' and neck_of(model) is None:
        raise ExportError(f'{type(model).__name__} has no neck: export --part backbone or model')
    detector, segmentor = hasattr(model, 'roi_head'), hasattr(model, 'decode_head')
    if part == 'model' and not (detector or segmentor):
        raise ExportError(
            f'cannot export a whole {type(model).__name__}, only two-stage detectors (MaskRCNN, FasterRCNN, '
            'CascadeRCNN) and segmentors (EncoderDecoder): take --part backbone'
        )
    model = copy.deepcopy(model).cpu().eval()
    merge_lora(model)
    options = dict(preprocessing or {})
    try:
        if part == 'model' and segmentor:
            sizes, seen = _segmentor_sizes(model, size, options)
            replace_pooling(model)
            graph: Any = SegmentorGraph(_traced(model.backbone, seen), model)
            outputs: tuple[str, ...] = ('logits', 'class_map')
        else:
            sizes = _sizes(model.backbone, size, options)
            traced = _traced(model.backbone, sizes.fixed)
            if part == 'model':
                graph = DetectorGraph(traced, model)
                outputs = ('boxes', 'scores', 'labels', 'counts', *(('masks',) if graph.masks is not None else ()))
            else:
                graph = PartGraph(traced, model.neck if part == 'neck' else None)
                outputs = tuple(f'map_{i}' for i in range(_num_maps(model, part)))
    except ExportError:
        raise
    except ValueError as error:
        raise ExportError(str(error)) from error
    task = 'features' if part != 'model' else 'detection' if detector else 'segmentation'
    metadata = dict(task=task, part=part, **options, **_describe_sizes(sizes))
    if task == 'detection':
        metadata['mask_threshold'] = float(model.roi_head.test_cfg.get('mask_thr_binary', 0.5))
    return Plan(graph.eval(), sizes, task == 'detection', outputs, metadata)


def _num_maps(model: Any, part: str) -> int:
    if part == 'backbone':
        return len(model.backbone.out_channels)
    return int(getattr(model.neck, 'num_outs', 0) or len(model.neck.rescales))


def _describe_sizes(sizes: Sizes) -> dict[str, Any]:
    return dict(fixed_size=sizes.fixed, multiple=sizes.multiple, smallest=sizes.smallest)


def _segmentor_sizes(
    model: Any, size: Sequence[int] | None, options: Mapping[str, Any]
) -> tuple[Sizes, tuple[int, int] | None]:
    """The sizes of the images, and the size that the backbone sees if that is fixed."""
    crop, _ = window_geometry(model.test_cfg)
    if crop is None:
        sizes = _sizes(model.backbone, size, options)
        return sizes, sizes.fixed
    fixed = None if size is None else (int(size[0]), int(size[1]))
    if fixed is not None and (fixed[0] < crop[0] or fixed[1] < crop[1]):
        raise ExportError(f'size is {fixed[0]} x {fixed[1]}, wanted at least the sliding window, {crop[0]} x {crop[1]}')
    return Sizes(fixed, 1, fixed or crop), crop


def _sizes(backbone: Any, size: Sequence[int] | None, options: Mapping[str, Any]) -> Sizes:
    """The sizes of the images where the backbone sees them whole."""
    step = int(getattr(backbone, 'stride', 0) or backbone.patch_size)
    multiple = max(int(options.get('pad_multiple') or 1), step)
    if multiple % step:
        raise ExportError(f'images are padded to multiples of {multiple}, but the backbone wants multiples of {step}')
    if size is not None:
        height, width = int(size[0]), int(size[1])
        if height < 1 or width < 1 or height % step or width % step:
            raise ExportError(f'size is {height} x {width}, wanted multiples of {step}')
        return Sizes((height, width), step, (height, width))
    if isinstance(backbone, ADDPSegViT):
        height, width = (side * backbone.patch_size for side in backbone.grid)
        return Sizes((height, width), step, (height, width), 'ADDPSegViT has positions for one size')
    longest = options.get('longest')
    if longest and multiple >= longest:
        reason = f'the config pads every image to {multiple} x {multiple}'
        return Sizes((multiple, multiple), multiple, (multiple, multiple), reason)
    if isinstance(backbone, ADDPViT):
        blocks: Any = backbone.blocks
        window_px = max(block.attn.window_size for block in blocks) * backbone.patch_size
        several_windows = max(multiple, -(-window_px // multiple) * multiple)
        return Sizes(None, multiple, (multiple, multiple), traced_from=(several_windows, several_windows))
    if not longest:
        raise ExportError(
            f'{type(backbone).__name__} is exported for one size, and the test pipeline does not say which: give --size'
        )
    side = -(-int(longest) // multiple) * multiple
    reason = f'positions of {type(backbone).__name__} are resized once, and the longer side of the images is {longest}'
    return Sizes((side, side), multiple, (side, side), reason)


def _prepare_trunk(backbone: TimmViT, size: tuple[int, int]) -> None:
    """Makes a backbone, a copy, one for a size of images that traces: tables of biases fit, attention is spelt out."""
    backbone.trunk.fit_biases((size[0] // backbone.stride, size[1] // backbone.stride))
    for block in backbone.vit.blocks:
        if isinstance(backbone.trunk, SamTrunk):
            block.attn.fused_attn = False  # fused, it is called with three axes, which the exporter does not know


def _traced(backbone: Any, size: tuple[int, int] | None) -> nn.Module:
    """A backbone in a form that traces; ``size`` of its images if that is fixed."""
    if isinstance(backbone, ADDPViT):
        return TracedViT(backbone)
    if isinstance(backbone, TimmViT):
        assert size is not None
        _prepare_trunk(backbone, size)
        return backbone if backbone.stride == backbone.patch_size else ResizedViT(backbone, size)
    if isinstance(backbone, ADDPSegViT):
        return backbone
    raise ExportError(f'cannot export the backbone {type(backbone).__name__}, only ADDPViT, ADDPSegViT and TimmViT')
