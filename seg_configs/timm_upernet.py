"""Any plain ViT of timm, UperNet, ADE20K, 160k iterations. Recipe: MAE's of ViT-B; for others that is an assumption.

Command: ``tools/dist_train.sh seg_configs/timm_upernet.py 8 --amp --cfg-options model.backbone.model=NAME
model.backbone.init_cfg.checkpoint=FILE`` (8 GPUs x 2 images); ``python tools/list_backbones.py`` lists the names. With
``model.backbone.pretrained=True model.backbone.init_cfg=None`` timm fetches the published weights itself. mIoU:
published by nobody under this protocol; measured: not run.
"""

_base_ = [
    '_base_/timm_upernet.py',
    '_base_/ade20k.py',
    '_base_/schedule_160k.py',
    '_base_/mmseg.py',
    '../det_configs/_base_/runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.65))  # MAE, ViT-B
