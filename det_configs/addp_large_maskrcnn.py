"""ADDP ViT-L, Mask R-CNN, COCO, 100 epochs. Recipe: ViTDet; the paper's own values are unpublished.

Command: ``tools/dist_train.sh det_configs/addp_large_maskrcnn.py 8 --amp`` (8 GPUs x 8 images; short of memory:
``--cfg-options model.backbone.with_cp=True``). Weights: ``python tools/convert_checkpoint.py
exp/release/addp-vit-large-16.pth exp/release/addp-vit-large-16.backbone.pth``. AP box: published 54.6; measured: not
run.
"""

_base_ = ['_base_/maskrcnn.py', '_base_/coco_lsj.py', '_base_/schedule_100e.py', '_base_/mmdet.py', '_base_/runtime.py']

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.4,  # ViTDet
        init_cfg=dict(checkpoint='exp/release/addp-vit-large-16.backbone.pth'),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))  # ViTDet
