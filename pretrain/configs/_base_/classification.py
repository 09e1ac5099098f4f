"""Classification: ImageNet as class folders, evaluation by top-1 and top-5, hooks. A leaf adds model and schedule.

Own data: ``--cfg-options model.num_classes=None train_dataloader.dataset.data_root=FOLDER
val_dataloader.dataset.data_root=FOLDER test_dataloader.dataset.data_root=FOLDER`` with
``FOLDER/{train,val}/<class>/<image>``; the classes are those of the folders. Lists (``path label`` a line):
``ann_file=meta/train.txt`` and ``meta/val.txt``, with ``classes=FILE`` (a name a line) for their names. Few images a
class: ``python tools/few_shot.py CONFIG``. Another crop at test time: ``--cfg-options
test_dataloader.dataset.pipeline.0.crop_ratio=0.875``.
"""

_base_ = './runtime.py'

custom_imports = dict(imports=['pretrain.classification'], allow_failed_imports=False)

img_size = 256
crop_ratio = 1.0  # of the shorter side, at test time (docs/reference.md)
data_root = 'data/imagenet'
few_shot = dict(images_per_class=10, seeds=(0, 1, 2, 3, 4))  # for tools/few_shot.py; ours

train_dataloader = dict(
    batch_size=128,  # a process
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='stack_images'),
    # num_repeats=3 is repeated augmentation: each image three times in a row, on different processes
    sampler=dict(type='SeededInfiniteSampler', num_repeats=1),
    dataset=dict(
        type='ClassificationDataset',
        data_root=data_root,
        data_prefix='train',
        images_per_class=None,  # all
        pipeline=[
            dict(
                type='SeedAugmentation'
            ),  # the draws below follow from seed and stream position: a resumed run repeats them
            dict(type='RandomResizedCropImage', size=img_size, scale=(0.08, 1.0)),
            dict(type='RandomFlipImage'),
            dict(type='PackImage'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='stack_images'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ClassificationDataset',
        data_root=data_root,
        data_prefix='val',
        test_mode=True,  # every image counts: one that cannot be read is an error
        pipeline=[dict(type='ResizeCenterCropImage', size=img_size, crop_ratio=crop_ratio), dict(type='PackImage')],
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='TopKAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_hooks = dict(
    _delete_=True,  # pre-training's figures
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(  # about every epoch of ImageNet at batch 1024
        type='SafeCheckpointHook',
        by_epoch=False,
        interval=1252,
        max_keep_ckpts=2,
        save_best='accuracy/top1',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    throughput=dict(type='ThroughputHook'),
)
custom_hooks = [
    dict(type='SeedEachIteration'),  # a resumed run draws what the unbroken one would have drawn
    dict(type='StopOnBadLoss'),  # the last good checkpoint stays
    dict(type='CheckSameClasses'),
    dict(type='ShareBuffersHook'),  # processes evaluate with one BatchNorm
]
