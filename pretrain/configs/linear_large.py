"""Linear probe of ADDP ViT-Large on ImageNet, 50 epochs (MAE's recipe: docs/reference.md; the published code has none).

Command: ``tools/dist_train.sh pretrain/configs/linear_large.py 32`` (MAE's global batch is 16384 = 32 GPUs x 512
images; on fewer GPUs ``optim_wrapper.accumulative_counts`` makes up for it, or the learning rate follows). Top-1:
measured: not run.
"""

_base_ = ['_base_/classification.py', '_base_/classification_linear.py']

model = dict(
    backbone=dict(arch='large', init_cfg=dict(type='Pretrained', checkpoint='exp/release/addp-vit-large-16.pth'))
)
train_dataloader = dict(batch_size=512)
train_cfg = dict(max_epochs=50)  # MAE: enough for ViT-L
