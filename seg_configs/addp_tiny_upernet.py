"""Tiny ViT, UperNet with small heads and crops: for debugging, laptops and small data sets.

Command: ``python tools/train.py seg_configs/addp_tiny_upernet.py`` (no GPU needed). On own data: inherit from this leaf
(``tools/new_dataset.py`` writes such a config). It trains from random weights too. All values are ours,
tuned on small data; nothing is published.

Measured on CamVid (367 training and 101 validation photographs of 480 x 360, 11 classes) from random weights, seed 0:
``python tools/train.py camvid.py --amp`` (bfloat16, OMP_NUM_THREADS=1) on one core of two, AMD EPYC, the other busy: 23
minutes; mIoU 38.7, pixel accuracy 83.0 % (the most frequent class everywhere: 2.7 and 29.5 %). Sky, road, tree,
building, pavement and car are learned; pole, sign, fence, pedestrian and bicyclist stay at IoU 0. One seed. For thin
and small things a larger ``resized_to`` and a longer schedule may help (not tried).
"""

_base_ = [
    '_base_/upernet.py',
    '_base_/ade20k.py',
    '_base_/schedule_160k.py',
    '_base_/mmseg.py',
    '../det_configs/_base_/runtime.py',
]

width = 192
num_channels = 64
norm_cfg = dict(type='ChannelLN', eps=1e-6)  # small batches: after pooling to 1 x 1, BN would see one value an image
crop_size = (256, 256)
resized_to = (
    640,
    256,
)  # longest and shortest side, in pixels, of a whole image, whichever is met first: a crop sees most of it

model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size=crop_size)),
    backbone=dict(
        _delete_=True,
        type='ADDPViT',  # any image size, without cls token
        arch='tiny',
        img_size=256,
        patch_size=8,
        pretrain_img_size=128,
        window_size=0,
        rel_pos=False,
        drop_path_rate=0.0,
        out_indices='upernet',
        init_cfg=None,
    ),
    neck=dict(embed_dim=width, rescales=[2, 1, 0.5, 0.25], norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=[width] * 4, channels=num_channels, norm_cfg=norm_cfg, loss_decode=dict(avg_non_ignore=True)
    ),
    auxiliary_head=dict(
        in_channels=width, channels=num_channels, norm_cfg=norm_cfg, loss_decode=dict(avg_non_ignore=True)
    ),
    test_cfg=dict(crop_size=crop_size, stride=(170, 170)),
)

train_pipeline = [
    dict(type='SeedAugmentation'),
    dict(type='LoadImage'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=resized_to, ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='Resize', scale=resized_to, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=1050, val_interval=525)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=1.0), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, eta_min=0.0),  # to the last iteration
]
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=dict(interval=500), logger=dict(interval=20))
