"""Tiny ViT, Mask R-CNN with small heads and images: for debugging, laptops and small data sets.

Command: ``python tools/train.py det_configs/addp_tiny_maskrcnn.py`` (no GPU needed). On own data: inherit from this
leaf (``tools/new_dataset.py`` writes such a config). It trains from random weights too. All
values are ours, tuned on small data; nothing is published.

Training sees whole photographs without size jitter, as evaluation does. Crops of 256 px (batch 4, lr 1.5e-3) had as
high an AP from random weights, but facades were taken for cars. docs/own_data.md says what the leaf reaches on CamVid,
from random weights and from the backbone of a UperNet.
"""

_base_ = ['_base_/maskrcnn.py', '_base_/coco_lsj.py', '_base_/schedule_100e.py', '_base_/mmdet.py', '_base_/runtime.py']

image_size = 480  # longer side, in pixels
num_channels = 64

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        arch='tiny',
        img_size=image_size,
        patch_size=8,
        pretrain_img_size=128,
        window_size=16,
        rel_pos=False,
        drop_path_rate=0.0,
        init_cfg=None,
    ),
    neck=dict(
        in_channels=192, out_channels=num_channels, scales=(2, 1, 0.5, 0.25)
    ),  # maps of strides 4 to 32, as with 16 px patches
    rpn_head=dict(
        in_channels=num_channels,
        feat_channels=num_channels,
        num_convs=1,
        anchor_generator=dict(scales=[3], ratios=[0.5, 1.0, 2.0, 4.0]),
    ),  # sides 12 to 192 px, for small and for upright things
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=num_channels, roi_layer=dict(sampling_ratio=2)),
        # heads start as mmdet's do: after detectron2's smaller start a few hundred iterations reach half the AP
        bbox_head=dict(
            in_channels=num_channels,
            conv_out_channels=num_channels,
            num_shared_convs=1,
            fc_out_channels=256,
            init_cfg=None,
        ),
        mask_roi_extractor=dict(out_channels=num_channels, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(
            type='addp_backbone.detection.mask_head.BatchTargetMaskHead',
            in_channels=num_channels,
            conv_out_channels=num_channels,
            num_convs=2,
        ),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=256), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=256)),
)

train_pipeline = [
    dict(type='SeedAugmentation'),
    dict(type='LoadImage'),
    dict(
        type='LargeScaleJitter',
        scale=(image_size, image_size),
        ratio_range=(1.0, 1.0),
        crop_size=(image_size, image_size),
        with_mask=True,
        min_box_px=1,
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='Resize', scale=(image_size, image_size), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(batch_size=2, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=1000, val_interval=1000)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.05), paramwise_cfg=dict(decay_rate=1.0), clip_grad=dict(max_norm=1.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, eta_min=0.0),  # to the last iteration
]
auto_scale_lr = dict(base_batch_size=2)
default_hooks = dict(checkpoint=dict(interval=500), logger=dict(interval=20))
