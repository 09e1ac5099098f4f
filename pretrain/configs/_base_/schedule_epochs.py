"""Schedule in epochs: AdamW, warm-up, cosine to 0, mixed precision (docs/reference.md).

A leaf sets ``train_cfg.max_epochs``. Iterations follow from the number of images and the real global batch; the cosine
ends with the last epoch and moves every iteration. The learning rate is 1e-4 for each 256 images of the global batch
(batch_size x processes x optim_wrapper.accumulative_counts). Precision: ``optim_wrapper.type=OptimWrapper`` is float32,
``BFloat16OptimWrapper`` bfloat16. Without CUDA it is bfloat16.

Departures from the published trainer: the loss scale may grow every 2000 iterations (torch's default; published 500);
an epoch counts its last, smaller batch; the warm-up starts at 1e-4 of the learning rate instead of 0.
"""

train_cfg = dict(type='EpochCountedTrainLoop')

optim_wrapper = dict(
    type='AmpOptimWrapper',  # float16 with dynamic loss scaling
    constructor='TwoGroupsConstructor',  # no weight decay on 1-d parameters and biases
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05),
    clip_grad=dict(max_norm=3.0),
)

# The warm-up starts at the rate of its first steps, as 0 would waste them.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=40, convert_to_iter_based=True
    ),  # to the last epoch
]

auto_scale_lr = dict(enable=True, base_batch_size=256)
