"""Data: COCO 2017 with boxes and masks, large-scale jitter (LSJ) at 1024 px as in ViTDet.

Layout: ``data/coco/{train2017,val2017}/*.jpg`` and ``data/coco/annotations/instances_{train2017,val2017}.json``.
"""

dataset_type = 'CocoInstances'
data_root = 'data/coco/'

train_pipeline = [
    dict(
        type='SeedAugmentation'
    ),  # the draws below follow from seed and stream position, so that a resumed run repeats them
    dict(type='LoadImage'),
    # ViTDet: flip, scale, crop; boxes are the extents of the clipped polygons; the preprocessor pads to 1024. An image
    # that lost all its objects stays, as a negative
    dict(
        type='LargeScaleJitter',
        scale=(1024, 1024),
        ratio_range=(0.1, 2.0),
        crop_size=(1024, 1024),
        flip_prob=0.5,
        with_mask=True,
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='Resize', scale=(1024, 1024), keep_ratio=True),  # ViTDet: longer side 1024
    dict(type='LoadAnnotations', with_bbox=True),  # for the pictures only; the metric reads ann_file
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=8,  # a GPU; ViTDet: 64 in all
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='SeededInfiniteSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True),  # d2
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(  # pycocotools' numbers, quicker
    type='QuickCocoMetric',
    ann_file=data_root + 'annotations/instances_val2017.json',
    metric=['bbox', 'segm'],
)
test_evaluator = val_evaluator
