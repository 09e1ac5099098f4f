"""A torchvision-backed stand-in for mmcv's compiled ops: what Mask R-CNN needs, and a clear error for the rest.

mmcv without compiled ops has no ``mmcv._ext``, and ``import mmdet`` then fails. ``import addp_backbone`` (or installing
the project, see :mod:`addp_backbone.mmcv_standin.finder`) makes ``mmcv._ext`` this module's three ops. Compiled ops,
where there are any, take precedence. ``python tools/doctor.py`` tells which are in use.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms
from torchvision.ops import roi_align as torchvision_roi_align

STAND_IN_FLAG = 'is_addp_stand_in'
AVERAGE_POOLING = 1


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: (N, 4) float, x1, y1, x2, y2.
        scores: (N,) float.
        iou_threshold: Boxes that overlap a better one by more than this IoU are left out.
        offset: 0; mmcv's legacy convention 1 (a box covers its last pixel) is not served.

    Returns:
        (K,) int64 indices of the boxes kept, best score first.

    Raises:
        NotImplementedError: If ``offset`` is not 0.
    """
    if offset != 0:
        raise NotImplementedError(
            f'nms: the torchvision stand-in serves offset=0, got offset={offset}; {_how_to_compile()}'
        )
    return torchvision_nms(boxes.float(), scores.float(), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign with average pooling, written into ``output``.

    Args:
        input: (B, C, H, W) features.
        rois: (K, 5): image index, x1, y1, x2, y2 in image pixels.
        output: (K, C, aligned_height, aligned_width), filled in place.
        argmax_y: Unused (maximum pooling only).
        argmax_x: Unused (maximum pooling only).
        aligned_height: Bins along y.
        aligned_width: Bins along x.
        spatial_scale: Feature pixels per image pixel.
        sampling_ratio: Samples along an axis of a bin; 0 = as many as the bin is wide.
        pool_mode: 1 (average).
        aligned: Whether pixel centres lie at half-integer coordinates.

    Raises:
        NotImplementedError: If ``pool_mode`` is not 1.
    """
    _check_pool_mode(pool_mode)
    pooled = _pool(input, rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` with respect to ``input``, added to ``grad_input`` (zeros when mmcv calls).

    Raises:
        NotImplementedError: If ``pool_mode`` is not 1.
    """
    _check_pool_mode(pool_mode)
    if rois.shape[0] == 0:
        return
    dtype = _pooling_dtype(grad_output)
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.add_(grad)


SERVED_OPS: dict[str, Callable[..., Any]] = {
    'nms': nms,
    'roi_align_forward': roi_align_forward,
    'roi_align_backward': roi_align_backward,
}


def fill_extension_module(module: ModuleType) -> None:
    """Gives an empty ``mmcv._ext`` module the served ops, and for every other name an op that raises when called."""
    module.__doc__ = __doc__
    setattr(module, STAND_IN_FLAG, True)
    for name, op in SERVED_OPS.items():
        setattr(module, name, op)
    module.__getattr__ = _unserved_op  # type: ignore[method-assign]


def ops_in_use() -> str:
    """Says which ops mmcv uses: ``'compiled'``, ``'torchvision stand-in'`` or ``'none'``."""
    if importlib.util.find_spec('mmcv') is None or importlib.util.find_spec('mmcv._ext') is None:
        return 'none'
    import mmcv._ext as extension

    return 'torchvision stand-in' if getattr(extension, STAND_IN_FLAG, False) is True else 'compiled'


def _unserved_op(name: str) -> Callable[..., NoReturn]:
    """Module ``__getattr__``: mmcv looks its ops up on import, so that only a call may fail."""
    if name.startswith('__') or name == STAND_IN_FLAG:
        raise AttributeError(name)

    def unserved(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f'mmcv op {name!r} is not compiled, and the torchvision stand-in serves only '
            f'{", ".join(SERVED_OPS)}; {_how_to_compile()}'
        )

    unserved.__name__ = name
    return unserved


def _how_to_compile() -> str:
    return (
        'to compile all ops: MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary onedl-mmcv --force-reinstall '
        '--no-deps onedl-mmcv (needs a C++ compiler, about 12 minutes, and a torch version that mmcv supports)'
    )


def _check_pool_mode(pool_mode: int) -> None:
    if pool_mode != AVERAGE_POOLING:
        raise NotImplementedError(
            f'roi_align: the torchvision stand-in serves pool_mode=1 (average), got {pool_mode}; {_how_to_compile()}'
        )


def _pooling_dtype(tensor: Tensor) -> torch.dtype:
    """Half precision is pooled in float32: a CPU has no half-precision kernel, and the sums stay accurate."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype


def _pool(
    features: Tensor, rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    dtype = _pooling_dtype(features)
    with torch.autocast(features.device.type, enabled=False):
        return torchvision_roi_align(features.to(dtype), rois.to(dtype), size, spatial_scale, sampling_ratio, aligned)
