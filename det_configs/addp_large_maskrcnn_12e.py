"""ADDP ViT-L, Mask R-CNN, COCO, 12 epochs: the 100-epoch recipe cut short (assumption: nobody published it for ADDP).

Command: ``tools/dist_train.sh det_configs/addp_large_maskrcnn_12e.py 8 --amp`` (8 GPUs x 8 images).
AP box: published none; measured: not run.
"""

_base_ = './addp_large_maskrcnn.py'

train_cfg = dict(max_iters=22125)  # 12 / 100 of ViTDet's 184375
param_scheduler = [
    _base_.param_scheduler[0],  # the same warm-up
    dict(_base_.param_scheduler[1], milestones=[19667, 21306]),  # at 8/9 and 26/27, as in ViTDet
]
