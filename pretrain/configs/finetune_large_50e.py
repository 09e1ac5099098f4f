"""ADDP ViT-Large fine-tuned on ImageNet, 50 epochs at 256 px (docs/reference.md: the published recipe).

Command: ``tools/dist_train.sh pretrain/configs/finetune_large_50e.py 8`` (the published global batch is 1024 = 8 GPUs x
128 images). Less memory: ``--cfg-options model.backbone.with_cp=True``. Top-1: published 85.9; measured: not run.
"""

_base_ = ['_base_/classification.py', '_base_/classification_finetune.py']

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='exp/release/addp-vit-large-16.pth'),
    )
)
train_dataloader = dict(dataset=dict(pipeline=_base_.finetune_pipeline))
train_cfg = dict(max_epochs=50)
optim_wrapper = dict(optimizer=dict(lr=2.5e-4), paramwise_cfg=dict(decay_rate=0.8))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    # to 1e-6 at batch 1024 (where lr is 1e-3), times each layer's factor as in MAE
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / 1e-3, by_epoch=True, begin=5, convert_to_iter_based=True),
]
