"""ViT-H of ViTDet, Mask R-CNN, COCO, 75 epochs from MAE's weights: detectron2's recipe and model.

Released file: ``model_final_7224f1.pkl`` (model id 329145471 in the README of detectron2's projects/ViTDet). ``python
tools/convert_checkpoint.py model_final_7224f1.pkl exp/release/vitdet-huge-maskrcnn.pth --whole``, then ``python
tools/test.py det_configs/vitdet_huge_maskrcnn.py exp/release/vitdet-huge-maskrcnn.pth``. AP box: published 56.7 (mask
50.2); measured: not run.

Training: ``tools/dist_train.sh det_configs/vitdet_huge_maskrcnn.py 8 --amp`` (8 GPUs x 8 images; short of memory:
``--cfg-options model.backbone.with_cp=True``). Weights: ``python tools/convert_checkpoint.py
mae_pretrain_vit_huge.pth exp/release/mae-vit-huge.backbone.pth --img-size 224``, which resamples the patches from 14
to 16 px by its own rule, where detectron2 starts from a file converted by theirs (departure).
"""

_base_ = ['_base_/maskrcnn.py', '_base_/coco_lsj.py', '_base_/schedule_100e.py', '_base_/mmdet.py', '_base_/runtime.py']

model = dict(
    backbone=dict(
        arch='huge',
        drop_path_rate=0.5,  # ViTDet
        pretrain_img_size=224,  # MAE
        init_cfg=dict(checkpoint='exp/release/mae-vit-huge.backbone.pth'),
    ),
    neck=dict(in_channels=1280),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.9, no_weight_decay='nothing'))  # ViTDet: ViT-H spares nothing
train_cfg = dict(max_iters=138281)  # ViTDet: 75 epochs
param_scheduler = [
    _base_.param_scheduler[0],  # the same warm-up
    dict(_base_.param_scheduler[1], milestones=[122916, 133159]),  # ViTDet
]
