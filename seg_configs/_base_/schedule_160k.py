"""Schedule: AdamW with layer-wise decay, 160k iterations at batch 16 (MAE). A leaf sets ``lr`` and ``decay_rate``.

Mixed precision: ``--amp`` (fp16); bf16: ``--amp --cfg-options optim_wrapper.dtype=bfloat16``. Gradient accumulation
over k batches: ``--cfg-options optim_wrapper.accumulative_counts=k``. With that, or with another number of GPUs or
images a GPU, give ``--auto-scale-lr``: learning rate, iterations and milestones follow the real global batch
(iterations count batches, not steps).
"""

num_warmup_iters = 1500  # MAE
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)  # MAE
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.05),  # MAE; lr is the leaf's
    constructor='ViTLayerDecayConstructor',
    paramwise_cfg=dict(no_weight_decay='1d'),
)  # MAE; decay_rate is the leaf's

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=num_warmup_iters),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=num_warmup_iters),  # to the last iteration
]

auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
