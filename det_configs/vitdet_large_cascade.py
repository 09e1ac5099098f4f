"""ViT-L of ViTDet, Cascade Mask R-CNN, COCO, 100 epochs from MAE's weights: detectron2's recipe and model.

Released file: ``model_final_1a9f28.pkl`` (model id 328021305 in the README of detectron2's projects/ViTDet). ``python
tools/convert_checkpoint.py model_final_1a9f28.pkl exp/release/vitdet-large-cascade.pth --whole``, then ``python
tools/test.py det_configs/vitdet_large_cascade.py exp/release/vitdet-large-cascade.pth``. AP box: published 57.6 (mask
50.0); measured: not run.

Training: ``tools/dist_train.sh det_configs/vitdet_large_cascade.py 8 --amp`` (8 GPUs x 8 images; short of memory:
``--cfg-options model.backbone.with_cp=True``). Weights: ``python tools/convert_checkpoint.py
mae_pretrain_vit_large.pth exp/release/mae-vit-large.backbone.pth --img-size 224``.
"""

_base_ = ['_base_/cascade.py', '_base_/coco_lsj.py', '_base_/schedule_100e.py', '_base_/mmdet.py', '_base_/runtime.py']

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.4,  # ViTDet
        pretrain_img_size=224,  # MAE
        init_cfg=dict(checkpoint='exp/release/mae-vit-large.backbone.pth'),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))  # ViTDet
