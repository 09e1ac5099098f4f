"""ViTDet-style ViT backbone and simple feature pyramid for mmdet and mmseg; importing it registers both.

It also makes sure that mmcv has the ops Mask R-CNN needs (see :mod:`addp_backbone.mmcv_ops`).
"""

from addp_backbone import mmcv_finder

mmcv_finder.install()
