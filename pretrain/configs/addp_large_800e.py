"""ADDP pre-training, ViT-Large, 800 epochs of ImageNet (docs/reference.md: the published recipe).

Command: ``tools/dist_train.sh pretrain/configs/addp_large_800e.py 64``; everything else as in addp_base_1600e.py.
Published after fine-tuning: ImageNet top-1 85.9, COCO AP box 54.6, ADE20K mIoU 54.3; FID 7.6, IS 105.1. Ours: not run.
"""

_base_ = './addp_base_1600e.py'

model = dict(
    network=dict(arch='large', token_predictor=dict(arch='large')),
    init_cfg=dict(token_predictor='exp/pretrained_model/mage-vitl-1600.pth'),
)

train_cfg = dict(max_epochs=800)
