"""Tiny ViT, UperNet with small heads and crops: for debugging, laptops and small data sets; trains from random weights too.

Command: ``python tools/train.py seg_configs/addp_tiny_upernet.py`` (no GPU needed). On own data: inherit from this leaf
(``tools/new_dataset.py`` writes such a config). All values are ours, tuned on small data; nothing is published.
"""

_base_ = ['_base_/upernet.py', '_base_/ade20k.py', '_base_/schedule_160k.py', '_base_/runtime.py']

width = 192
num_channels = 64
norm_cfg = dict(type='ChannelLN', eps=1e-6)  # small batches: after pooling to 1 x 1, BN would see one value an image
crop_size = (224, 224)
resized_to = (960, 360)  # longest and shortest side, in pixels, of a whole image; whichever is met first

model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size=crop_size)),
    backbone=dict(arch='tiny', img_size=224, patch_size=8, pretrain_img_size=128, window_size=0, rel_pos=False, drop_path_rate=0.0, init_cfg=None),
    neck=dict(embed_dim=width, rescales=[2, 1, 0.5, 0.25], norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[width] * 4, channels=num_channels, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=width, channels=num_channels, norm_cfg=norm_cfg),
    test_cfg=dict(crop_size=crop_size, stride=(149, 149)))

train_pipeline = [
    dict(type='SeedAugmentation'),
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=resized_to, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=resized_to, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=2, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=2000, val_interval=500)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(decay_rate=1.0),
    clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, eta_min=0.0),  # to the last iteration
]
auto_scale_lr = dict(base_batch_size=2)
default_hooks = dict(checkpoint=dict(interval=500), logger=dict(interval=20))
