"""Tiny networks and schedule: the whole pipeline on a CPU in minutes, from any folder of images (all values ours).

32 px images, 4 x 4 patches, 8 x 8 tokens of 256 codes: few enough that all three networks learn something in minutes.
tools/convert_checkpoint.py resamples the patches, so that a backbone sees at a larger size what the encoder saw here.
"""

img_size = 32
patch_size = 4
tokenizer = (
    dict(  # one width: where it changes, residual blocks have no identity path, and a short training learns no colours
        base_channels=32,
        channel_multipliers=(1, 1, 1),
        num_res_blocks=1,
        latent_channels=32,
        num_codes=256,
        norm_groups=8,
    )
)
dropout = 0.0  # short trainings cannot overfit, and learn more without
token_predictor = dict(arch='tiny', decoder_depth=2, decoder_num_heads=3, dropout=dropout, position_waves=True)
max_iters = 600

train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='stack_images'),
    sampler=dict(type='SeededInfiniteSampler'),
    dataset=dict(
        type='ImageFolderDataset',
        data_root='data/shapes/plain',
        max_unreadable=10,
        pipeline=[
            dict(type='SeedAugmentation'),
            dict(
                type='RandomResizedCropImage', size=img_size, scale=(0.08, 0.35), interpolation='bicubic'
            ),  # a shape is many tokens
            dict(type='RandomFlipImage', prob=0.5),
            dict(type='PackImage'),
        ],
    ),
)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='TwoGroupsConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
    clip_grad=dict(max_norm=3.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=0),  # to max_iters; times the warm-up
]
