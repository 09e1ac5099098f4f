"""Tiny UperNet for images of 128 px, of which it sees all at once: what ``tools/quickstart.py`` runs.

Command: ``python tools/train.py seg_configs/addp_tiny_upernet_128px.py``. All values are ours; nothing is published.
"""

_base_ = './addp_tiny_upernet.py'

crop_size = (128, 128)

model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size=crop_size)),
    backbone=dict(
        img_size=128, tokenizer_norm=True
    ),  # as in pre-training: mIoU 23.5 instead of 16.5 from ADDP weights, one run each
    test_cfg=dict(crop_size=crop_size, stride=(85, 85)),
)

changes = dict(
    RandomResize=dict(scale=crop_size, ratio_range=(1.0, 1.5)),
    RandomCrop=dict(crop_size=crop_size),
    Resize=dict(scale=crop_size),
)
train_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **changes.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=300, val_interval=300)
# mIoU after 200 iterations on 60 scenes, from weights of an earlier pre-training / random ones, one run each:
# 28.0 / 27.1; without decay 27.0 / 27.3; lr 1e-3 without decay 25.5 / 24.8.
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(decay_rate=0.6))
auto_scale_lr = dict(base_batch_size=8)
