"""ADDP ViT-Base fine-tuned on ImageNet, 100 epochs at 256 px (docs/reference.md: the published recipe).

Command: ``tools/dist_train.sh pretrain/configs/finetune_base_100e.py 8`` (the published global batch is 1024 = 8 GPUs x
128 images). Weights: the released file itself, or any checkpoint of ADDP, MAE, MAGE or timm; positions are resized to
``img_size``. Top-1: published 83.9; measured: not run.
"""

_base_ = ['_base_/classification.py', '_base_/classification_finetune.py']

model = dict(
    backbone=dict(
        arch='base', drop_path_rate=0.1, init_cfg=dict(type='Pretrained', checkpoint='exp/release/addp-vit-base-16.pth')
    )
)
train_dataloader = dict(dataset=dict(pipeline=_base_.finetune_pipeline))
train_cfg = dict(max_epochs=100)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=0.65))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    # to 1e-6 at batch 1024 (where lr is 4e-3), times each layer's factor as in MAE
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / 4e-3, by_epoch=True, begin=20, convert_to_iter_based=True),
]
