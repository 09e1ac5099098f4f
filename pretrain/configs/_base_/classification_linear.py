"""Linear probing: MAE's recipe with departures (docs/reference.md; the published code has none). A leaf sets the arch.

Departures: the mean of the patch tokens is probed, as SI and MAGE do, not the cls token, whose output gets no gradient
in ADDP's pre-training; images have 256 px, the size of pre-training, not 224; tests resize to 256 and crop 256.

As in pre-training, ``tokenizer_norm`` and the encoder's final ``norm`` are in place. ``model.backbone.out_index``
chooses the block whose output is probed (0 = the first, -1 = the last). The learning rate is for 256 images of the
global batch and follows the real one.
"""

model = dict(
    type='ImageClassifier',
    linear_probe=True,
    num_classes=1000,
    data_preprocessor=dict(type='ClassificationPreprocessor'),
    backbone=dict(
        type='ClassifierViT', img_size=256, patch_size=16, tokenizer_norm=True, final_norm=True, out_index=-1
    ),
)

train_cfg = dict(
    type='EpochCountedTrainLoop', max_epochs=90, val_interval=395
)  # about five epochs of ImageNet at batch 16384
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(type='LARS', lr=0.1, momentum=0.9, weight_decay=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=10, convert_to_iter_based=True
    ),  # to the last epoch
]
auto_scale_lr = dict(enable=True, base_batch_size=256)
