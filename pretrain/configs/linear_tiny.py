"""Linear probe of tiny ADDP on generated shapes, on a CPU in minutes (all values ours).

Command: ``python tools/train.py pretrain/configs/linear_tiny.py`` (no GPU needed). Data and weights as in
finetune_tiny.py.
"""

_base_ = ['_base_/classification.py', '_base_/classification_linear.py']

img_size = 64
pipeline = [
    dict(type='SeedAugmentation'),
    dict(type='RandomResizedCropImage', size=img_size, scale=(0.4, 1.0)),
    dict(type='RandomFlipImage'),
    dict(type='PackImage'),
]

model = dict(
    num_classes=None,  # from the data
    backbone=dict(
        arch='tiny',
        img_size=img_size,
        patch_size=8,
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/addp_tiny/iter_600.pth'),
    ),
)

data_root = 'data/shapes/classes'
train_dataloader = dict(
    batch_size=32, num_workers=1, pin_memory=False, dataset=dict(data_root=data_root, pipeline=pipeline)
)
val_dataloader = dict(
    batch_size=50,
    num_workers=1,
    pin_memory=False,
    dataset=dict(
        data_root=data_root, pipeline=[dict(type='ResizeCenterCropImage', size=img_size), dict(type='PackImage')]
    ),
)
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=20, val_interval=200)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=40.0))  # 5 at batch 32; LARS steps are a thousandth of it
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=2, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=200), logger=dict(interval=20))
log_processor = dict(window_size=20)
