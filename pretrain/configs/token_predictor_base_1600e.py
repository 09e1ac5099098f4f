"""Token predictor (MAGE ViT-Base) from scratch, 1600 epochs of ImageNet; takes the place of mage-vitb-1600.pth.

Command: ``tools/dist_train.sh pretrain/configs/token_predictor_base_1600e.py 64``. Result: not run. Recipe: MAGE's
paper (AdamW, 1.5e-4 for each 256 images, batch 4096, 40 epochs of warm-up); what it shares with ADDP's is inherited.
"""

_base_ = ['_base_/images_256.py', '_base_/schedule_epochs.py', '_base_/runtime.py']

model = dict(
    type='TokenPredictorTraining',
    token_predictor=dict(arch='base'),
    init_cfg=dict(tokenizer='exp/pretrained_model/vqgan_jax_strongaug.ckpt'),
)

interpolation = dict(RandomResizedCropImage=dict(interpolation='bilinear'))  # MAGE; ADDP's is bicubic
pipeline = [dict(step, **interpolation.get(step['type'], {})) for step in _base_.train_dataloader.dataset.pipeline]
train_dataloader = dict(dataset=dict(pipeline=pipeline))

train_cfg = dict(max_epochs=1600)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4))
