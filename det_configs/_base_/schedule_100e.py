"""Schedule: AdamW with layer-wise decay, 100 epochs of COCO at batch 64 (ViTDet). A leaf sets ``decay_rate``.

Other global batches: ``--auto-scale-lr``. Mixed precision: ``--amp`` (fp16, as ViTDet), or for bf16
``--cfg-options optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16``. Gradient accumulation over k batches:
``--cfg-options optim_wrapper.accumulative_counts=k``; iterations count batches, so multiply max_iters, milestones and warm-up by k.
"""

train_cfg = dict(
    type='IterBasedTrainLoop',
    max_iters=184375,  # ViTDet: 100 epochs
    val_interval=5000)  # d2
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),  # ViTDet
    constructor='ViTLayerDecayConstructor',
    paramwise_cfg=dict(no_weight_decay='norm_and_pos_embed'))  # ViTDet; decay_rate is the leaf's

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),  # ViTDet
    dict(type='MultiStepLR', by_epoch=False, milestones=[163889, 177546], gamma=0.1),  # ViTDet
]

auto_scale_lr = dict(enable=False, base_batch_size=64)  # 8 GPUs x 8 images
