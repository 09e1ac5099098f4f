"""ViTDet-style ViT backbone and simple feature pyramid for mmdet and mmseg; importing it registers both.

It also makes sure that mmcv has the ops Mask R-CNN needs (see :mod:`addp_backbone.mmcv_ops`).
"""

from addp_backbone import mmcv_finder

mmcv_finder.install()

from addp_backbone import amp, large_scale_jitter, resume, saving, sharding  # noqa: E402, F401  (registers hooks, transforms and wrappers; mmcv's ops must be in place first)
from addp_backbone.layer_decay import ViTLayerDecayConstructor  # noqa: E402
from addp_backbone.pyramid import SimpleFeaturePyramid  # noqa: E402
from addp_backbone.vit import ADDPViT  # noqa: E402

__all__ = ['ADDPViT', 'SimpleFeaturePyramid', 'ViTLayerDecayConstructor']
