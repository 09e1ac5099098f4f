"""Tiny ViT, Mask R-CNN with small heads and images: for debugging, laptops and small data sets; trains from random weights too.

Command: ``python tools/train.py det_configs/addp_tiny_maskrcnn.py`` (no GPU needed). On own data: inherit from this leaf
(``tools/new_dataset.py`` writes such a config). All values are ours, tuned on small data; nothing is published.

Measured on CamVid (367 training and 101 validation photographs of 480 x 360, 4 classes) from random weights in two runs of about these
settings, bfloat16, one thread of a loaded AMD EPYC, 19 and 23 minutes: AP box 3.5 and 2.7, AP50 10.3 and 7.1, AP of large objects 34.1 and
26.1. Near cars are found; facades are often taken for cars. It checks that everything works; it is no detector yet. Whole photographs
(crop_size=(480, 360), ratio_range=(1, 1), batch 2, lr 1e-3, 1000 iterations, 34 minutes) gave AP box 2.8, AP50 7.3, large 30.8, and fewer false cars.
"""

_base_ = ['_base_/maskrcnn.py', '_base_/coco_lsj.py', '_base_/schedule_100e.py', '_base_/runtime.py']

image_size = 480  # longer side of a whole image, in pixels
crop_size = 256  # side of what training sees of it
num_channels = 64

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(arch='tiny', img_size=image_size, patch_size=8, pretrain_img_size=128, window_size=16, rel_pos=False, drop_path_rate=0.0,
                  init_cfg=None),
    neck=dict(in_channels=192, out_channels=num_channels, scales=(2, 1, 0.5, 0.25)),  # maps of strides 4 to 32, as with 16 px patches
    rpn_head=dict(in_channels=num_channels, feat_channels=num_channels, num_convs=1,
        anchor_generator=dict(scales=[3], ratios=[0.5, 1.0, 2.0, 4.0])),  # sides 12 to 192 px, for small and for upright things
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=num_channels, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(in_channels=num_channels, conv_out_channels=num_channels, num_shared_convs=1, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=num_channels, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(in_channels=num_channels, conv_out_channels=num_channels, num_convs=2)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=256), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=256)))

train_pipeline = [
    dict(type='SeedAugmentation'),
    dict(type='LoadImageFromFile'),
    dict(type='LargeScaleJitter', scale=(image_size, image_size), ratio_range=(0.8, 1.25), crop_size=(crop_size, crop_size),
         with_mask=True, min_box_px=1),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(image_size, image_size), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=850, val_interval=850)
optim_wrapper = dict(
    optimizer=dict(lr=1.5e-3, weight_decay=0.05),
    paramwise_cfg=dict(decay_rate=1.0),
    clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, eta_min=0.0),  # to the last iteration
]
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=dict(interval=300), logger=dict(interval=20))
