"""ADDP pre-training, ViT-Base, 1600 epochs of ImageNet (docs/reference.md: the published recipe).

Command: ``tools/dist_train.sh pretrain/configs/addp_base_1600e.py 64`` (the published global batch is 4096 = 64
processes x 64 images; on fewer GPUs the learning rate follows, or set ``optim_wrapper.accumulative_counts``). Weights
of the frozen networks: see ``init_cfg``; docs/reference.md says where to get them. ``model.init_cfg.tokenizer=random``
(and ``token_predictor=random``) measures speed without them. Published after fine-tuning: ImageNet top-1 83.9, COCO AP
box 51.7, ADE20K mIoU 48.1; FID 8.9, IS 95.3. Ours: not run.
"""

_base_ = ['_base_/images_256.py', '_base_/schedule_epochs.py', '_base_/runtime.py']

model = dict(
    type='ADDPPretraining',
    network=dict(
        arch='base',
        token_predictor=dict(arch='base'),
        frozen_dtype='auto',  # ours: 16 bits on CUDA if the first batch's tokens allow it
        predictor_dropout=True,  # the published trainer's train() reaches the predictor; the method wants it off
    ),  # the rest: ADDP's defaults, which are the published sizes
    init_cfg=dict(
        tokenizer='exp/pretrained_model/vqgan_jax_strongaug.ckpt',
        token_predictor='exp/pretrained_model/mage-vitb-1600.pth',
    ),
)

train_cfg = dict(max_epochs=1600)
