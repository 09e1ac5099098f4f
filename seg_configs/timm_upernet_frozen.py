"""Any plain ViT of timm, frozen, UperNet, ADE20K, 160k iterations: what its features hold as they are.

Command: ``tools/dist_train.sh seg_configs/timm_upernet_frozen.py 8 --amp --cfg-options model.backbone.model=NAME
model.backbone.init_cfg.checkpoint=FILE`` (8 GPUs). The learning rate is MAE's; mIoU: published by nobody; measured: not
run.
"""

_base_ = [
    '_base_/timm_upernet.py',
    '_base_/ade20k.py',
    '_base_/schedule_160k.py',
    '_base_/mmseg.py',
    '../det_configs/_base_/runtime.py',
]

model = dict(backbone=dict(frozen=True, drop_path_rate=0.0))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=1.0))
