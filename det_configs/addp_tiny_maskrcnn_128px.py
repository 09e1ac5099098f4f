"""Tiny ViT, Mask R-CNN for images of 128 px: what ``tools/quickstart.py`` runs.

Command: ``python tools/train.py det_configs/addp_tiny_maskrcnn_128px.py``. All values are ours; nothing is published.
"""

_base_ = './addp_tiny_maskrcnn.py'

image_size = 128

model = dict(
    backbone=dict(
        img_size=image_size, window_size=0, tokenizer_norm=True
    ),  # as in pre-training; not compared here, segmentation gains by it
    rpn_head=dict(anchor_generator=dict(scales=[4], ratios=[0.5, 1.0, 2.0])),
)

size = (image_size, image_size)
train_pipeline = [
    dict(step, scale=size, ratio_range=(0.8, 1.25), crop_size=size) if 'crop_size' in step else step
    for step in _base_.train_pipeline
]
test_pipeline = [dict(step, scale=size) if 'scale' in step else step for step in _base_.test_pipeline]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=300, val_interval=300)
default_hooks = dict(checkpoint=dict(interval=300))
auto_scale_lr = dict(base_batch_size=4)
