"""ADDP ViT-B, UperNet, ADE20K, 160k iterations. Recipe: MAE; the paper's own values are unpublished.

Command: ``tools/dist_train.sh seg_configs/addp_base_upernet.py 8 --amp`` (8 GPUs x 2 images). Weights: the released
file itself, or any checkpoint of ADDP, MAE, MAGE or timm. mIoU: published 48.1; measured: not run.
"""

_base_ = [
    '_base_/upernet.py',
    '_base_/ade20k.py',
    '_base_/schedule_160k.py',
    '_base_/mmseg.py',
    '../det_configs/_base_/runtime.py',
]

width = 768
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.1),  # MAE
    neck=dict(embed_dim=width),
    decode_head=dict(in_channels=[width] * 4, channels=width),
    auxiliary_head=dict(in_channels=width),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.65))  # MAE
