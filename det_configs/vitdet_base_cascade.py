"""ViT-B of ViTDet, Cascade Mask R-CNN, COCO, 100 epochs from MAE's weights: detectron2's recipe and model.

Released file: ``model_final_435fa9.pkl`` (model id 325358525 in the README of detectron2's projects/ViTDet). ``python
tools/convert_checkpoint.py model_final_435fa9.pkl exp/release/vitdet-base-cascade.pth --whole``, then ``python
tools/test.py det_configs/vitdet_base_cascade.py exp/release/vitdet-base-cascade.pth``. AP box: published 54.0 (mask
46.7); measured: not run.

Training: ``tools/dist_train.sh det_configs/vitdet_base_cascade.py 8 --amp`` (8 GPUs x 8 images). Weights: ``python
tools/convert_checkpoint.py mae_pretrain_vit_base.pth exp/release/mae-vit-base.backbone.pth --img-size 224``.
"""

_base_ = ['_base_/cascade.py', '_base_/coco_lsj.py', '_base_/schedule_100e.py', '_base_/mmdet.py', '_base_/runtime.py']

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.1,  # ViTDet
        pretrain_img_size=224,  # MAE
        init_cfg=dict(checkpoint='exp/release/mae-vit-base.backbone.pth'),
    ),
    neck=dict(in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7))  # ViTDet
