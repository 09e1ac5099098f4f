"""ADDP ViT-L, UperNet, ADE20K, 160k iterations.

Recipe: MAE; learning rate and layer decay are BEiT's for ViT-L (fine-tuned on ImageNet-22k before; batch 16), the only
ones published for this size. That they suit ADDP's weights is an assumption.

Command: ``tools/dist_train.sh seg_configs/addp_large_upernet.py 8 --amp`` (8 GPUs x 2 images);
``seg_configs/sweep_large.sh`` tries 16 settings of the two. Weights: the released file itself, or any checkpoint of
ADDP, MAE, MAGE or timm. mIoU: published 54.3; measured: not run.
"""

_base_ = [
    '_base_/upernet.py',
    '_base_/ade20k.py',
    '_base_/schedule_160k.py',
    '_base_/mmseg.py',
    '../det_configs/_base_/runtime.py',
]

width = 1024
model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.2,  # MAE
        init_cfg=dict(checkpoint='exp/release/addp-vit-large-16.pth'),
    ),
    neck=dict(embed_dim=width),
    decode_head=dict(in_channels=[width] * 4, channels=width),
    auxiliary_head=dict(in_channels=width),
)
optim_wrapper = dict(optimizer=dict(lr=2e-5), paramwise_cfg=dict(decay_rate=0.95))  # BEiT-L
