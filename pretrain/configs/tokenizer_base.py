"""Tokenizer (VQGAN) from scratch, 100 epochs of ImageNet; takes the place of vqgan_jax_strongaug.ckpt.

Command: ``tools/dist_train.sh pretrain/configs/tokenizer_base.py 8``. Result: not run. Recipe: VQGAN's losses and
weights; its released jax version's learning rate (1e-4 for each 256 images) and all else are assumptions. The
perceptual term needs torchvision's VGG16 (https://download.pytorch.org/models/vgg16-397923af.pth), which is not
downloaded for you: ``--cfg-options model.objective.perceptual_weight=1.0
model.init_cfg.vgg16=exp/pretrained_model/vgg16-397923af.pth``.
"""

_base_ = ['_base_/images_256.py', '_base_/schedule_epochs.py', '_base_/runtime.py']

model = dict(
    type='TokenizerTraining',
    tokenizer=dict(),  # the published sizes
    objective=dict(
        pixel_weight=1.0,
        codebook_weight=1.0,
        commitment_weight=0.25,
        perceptual_weight=0.0,  # VQGAN: 1.0; see above
        adversarial_weight=0.8,  # VQGAN: 0.8, times the adaptive weight
        adversarial_start_iters=50000,
    ),  # VQGAN: after the reconstruction has settled
    init_cfg=dict(tokenizer=None, vgg16=None),
)

train_cfg = dict(max_epochs=100)
optim_wrapper = dict(optimizer=dict(betas=(0.5, 0.9), weight_decay=0.0))  # VQGAN
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=1, convert_to_iter_based=True),
]
default_hooks = dict(revive_codes=dict(type='ReviveCodesHook', interval=100))
