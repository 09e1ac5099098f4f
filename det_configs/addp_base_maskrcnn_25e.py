"""ADDP ViT-B, Mask R-CNN, COCO, 25 epochs: the 100-epoch recipe cut short (assumption: nobody published it for ADDP).

Command: ``tools/dist_train.sh det_configs/addp_base_maskrcnn_25e.py 8 --amp`` (8 GPUs x 8 images).
AP box: published none; measured: not run.
"""

_base_ = ['_base_/maskrcnn.py', '_base_/coco_lsj.py', '_base_/schedule_25e.py', '_base_/mmdet.py', '_base_/runtime.py']

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.1),  # ViTDet
    neck=dict(in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7))  # ViTDet
