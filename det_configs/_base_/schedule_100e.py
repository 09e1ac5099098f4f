"""Schedule: AdamW with layer-wise decay, 100 epochs of COCO at batch 64 (ViTDet). A leaf sets ``decay_rate``.

Mixed precision: ``--amp`` (fp16, as ViTDet); bf16: ``--amp --cfg-options optim_wrapper.dtype=bfloat16``. Gradient
accumulation over k batches: ``--cfg-options optim_wrapper.accumulative_counts=k``. With that, or with another number of
GPUs or images a GPU, give ``--auto-scale-lr``: learning rate, iterations and milestones follow the real global batch
(iterations count batches, not steps).
"""

train_cfg = dict(
    type='IterBasedTrainLoop',
    max_iters=184375,  # ViTDet: 100 epochs
    val_interval=5000,
)  # d2
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),  # ViTDet
    constructor='ViTLayerDecayConstructor',
    paramwise_cfg=dict(no_weight_decay='norm_and_pos_embed'),
)  # ViTDet; decay_rate is the leaf's

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),  # ViTDet
    dict(type='MultiStepLR', by_epoch=False, milestones=[163889, 177546], gamma=0.1),  # ViTDet
]

auto_scale_lr = dict(enable=False, base_batch_size=64)  # 8 GPUs x 8 images
