"""Any plain ViT of timm, Mask R-CNN, COCO, 100 epochs. Recipe: ViTDet; for other people's ViTs that is an assumption.

Command: ``tools/dist_train.sh det_configs/timm_maskrcnn.py 8 --amp --cfg-options model.backbone.model=NAME
model.backbone.init_cfg.checkpoint=FILE`` (8 GPUs x 8 images); ``python tools/list_backbones.py`` lists the names. With
``model.backbone.pretrained=True model.backbone.init_cfg=None`` timm fetches the published weights itself. AP box:
published by nobody under this protocol; measured: not run.

Learning rate, schedule and losses are ViTDet's; layer decay and drop path follow from the depth as ViTDet's do from B,
L and H (0.7, 0.8, 0.9 and 0.1, 0.4, 0.5).
"""

_base_ = [
    '_base_/timm_maskrcnn.py',
    '_base_/coco_lsj.py',
    '_base_/schedule_100e.py',
    '_base_/mmdet.py',
    '_base_/runtime.py',
]

optim_wrapper = dict(paramwise_cfg=dict(decay_rate='vitdet'))
