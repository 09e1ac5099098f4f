"""ViTDet-style ViT backbone and simple feature pyramid for mmdet and mmseg; importing it registers both.

It also makes sure that mmcv has the ops Mask R-CNN needs (see :mod:`addp_backbone.mmcv_standin.ops`).
"""

from addp_backbone.mmcv_standin import finder

finder.install()

from addp_backbone.checkpoint import door  # noqa: E402

door.close_unsafe_ways()

from addp_backbone.datasets import coco_dataset, loading  # noqa: E402, F401  (registers data set, transform)
from addp_backbone.detection import coco_metric, large_scale_jitter  # noqa: E402, F401  (registers metric, transforms)
from addp_backbone.networks import fit  # noqa: E402, F401  (registers FitToBackbone)
from addp_backbone.networks.pyramid import SimpleFeaturePyramid  # noqa: E402
from addp_backbone.networks.segmentation_vit import ADDPSegViT  # noqa: E402
from addp_backbone.networks.timm_vit import TimmViT  # noqa: E402
from addp_backbone.networks.vit import ADDPViT  # noqa: E402
from addp_backbone.runtime import (  # noqa: E402  (registers hooks, transforms and wrappers; mmcv's ops come first)
    bad_samples,  # noqa: F401
    class_check,  # noqa: F401
    cuda_options,  # noqa: F401
    curves,  # noqa: F401
    deferred,  # noqa: F401
    loaders,  # noqa: F401
    optim_wrappers,  # noqa: F401
    preemption,  # noqa: F401
    saving,  # noqa: F401
    seeding,  # noqa: F401
    sharding,  # noqa: F401
    show_dir,  # noqa: F401
    stopping,  # noqa: F401
    unlabelled,  # noqa: F401
    watchdog,  # noqa: F401
)
from addp_backbone.runtime.layer_decay import ViTLayerDecayConstructor  # noqa: E402

__all__ = ['ADDPSegViT', 'ADDPViT', 'SimpleFeaturePyramid', 'TimmViT', 'ViTLayerDecayConstructor']
