"""A small plain ViT of timm, Mask R-CNN with the small heads of addp_tiny_maskrcnn.py: for laptops and small data sets.

Command: ``python tools/train.py det_configs/timm_tiny_maskrcnn.py --cfg-options
model.backbone.init_cfg.checkpoint=FILE`` (no GPU needed; on own data inherit from this leaf). The backbone is frozen by
default, and its ninth block is the map that pyramid and heads get: DINOv2-S's best of twelve in a probe, better than
its tenth here (docs/other_vits.md). All values are ours, tuned on small data; nothing is published.
"""

_base_ = './addp_tiny_maskrcnn.py'

image_size = 768  # longer side, in pixels

model = dict(
    type='FitToBackbone',
    model_type='MaskRCNN',
    data_preprocessor=dict(mean='backbone.mean', std='backbone.std'),
    backbone=dict(
        _delete_=True,
        type='TimmViT',
        model='vit_small_patch14_dinov2',
        img_size=image_size,
        out_indices=(8,),
        frozen=True,
        stride=16,
        norm_maps=True,
        init_cfg=dict(type='Pretrained', checkpoint='exp/timm/vit_small_patch14_dinov2.safetensors'),
    ),
    neck=dict(in_channels='backbone.width', scales=(4, 2, 1, 0.5)),
)

# pipelines hold the size of the leaf that they are written in, so they stand here again
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
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
