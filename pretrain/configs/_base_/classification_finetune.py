"""Fine-tuning: model, augmentation and schedule (docs/reference.md).

A leaf sets arch, drop path, epochs, learning rate and its decay.

The learning rate is for 256 images of the global batch (batch_size x processes x optim_wrapper.accumulative_counts) and
follows the real one. Precision: ``optim_wrapper.type=OptimWrapper`` is float32, ``BFloat16OptimWrapper`` bfloat16.
Without CUDA it is bfloat16.
"""

model = dict(
    type='ImageClassifier',
    num_classes=1000,
    label_smoothing=0.1,
    data_preprocessor=dict(type='ClassificationPreprocessor', erasing_prob=0.25, mixup=0.8, cutmix=1.0),
    backbone=dict(
        type='ClassifierViT',
        img_size=256,
        patch_size=16,
        tokenizer_norm=False,  # the published fine-tuning has none
        final_norm=False,  # nor this: the new fc_norm behind the mean takes its place
        with_cp=False,
    ),
)

finetune_pipeline = [
    dict(type='SeedAugmentation'),
    dict(type='RandomResizedCropImage', size=256, scale=(0.08, 1.0)),  # MAE; the reference does not say
    dict(type='RandomFlipImage'),
    dict(type='RandAugmentImage', policy='rand-m9-mstd0.5-inc1'),
    dict(type='PackImage'),
]

train_cfg = dict(type='EpochCountedTrainLoop', val_interval=1252)
optim_wrapper = dict(
    type='AmpOptimWrapper',  # float16 with dynamic loss scaling
    constructor='ViTLayerDecayConstructor',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(no_weight_decay='1d_and_embeddings'),
)  # MAE
auto_scale_lr = dict(enable=True, base_batch_size=256)
