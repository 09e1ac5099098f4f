"""Tiny ViT, Mask R-CNN for images of 128 px: what ``tools/quickstart.py`` runs.

Command: ``python tools/train.py det_configs/addp_tiny_maskrcnn_128px.py``. All values are ours; nothing is published.
"""

_base_ = './addp_tiny_maskrcnn.py'

image_size = 128

model = dict(backbone=dict(img_size=image_size, window_size=0))

train_pipeline = [
    dict(type='SeedAugmentation'),
    dict(type='LoadImageFromFile'),
    dict(type='LargeScaleJitter', scale=(image_size, image_size), ratio_range=(0.8, 1.25), crop_size=(image_size, image_size),
         with_mask=True, min_box_px=1),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(image_size, image_size), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=300, val_interval=300)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=4)
