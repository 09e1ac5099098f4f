"""Any plain ViT of timm, frozen, Mask R-CNN, COCO, 12 epochs: what its features hold as they are.

Command: ``tools/dist_train.sh det_configs/timm_maskrcnn_frozen.py 8 --amp --cfg-options model.backbone.model=NAME
model.backbone.init_cfg.checkpoint=FILE`` (8 GPUs). The short schedule is an assumption: only pyramid and heads learn.
Attention is global in every block, as in pre-training. AP box: published by nobody; measured: not run.
"""

_base_ = [
    '_base_/timm_maskrcnn.py',
    '_base_/coco_lsj.py',
    '_base_/schedule_12e.py',
    '_base_/mmdet.py',
    '_base_/runtime.py',
]

model = dict(backbone=dict(frozen=True, window_size=0, drop_path_rate=0.0))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
