"""ViT-B of ViTDet, Mask R-CNN, COCO, 100 epochs from MAE's weights: detectron2's recipe and model.

Released file: ``model_final_61ccd1.pkl`` (model id 325346929 in the README of detectron2's projects/ViTDet). ``python
tools/convert_checkpoint.py model_final_61ccd1.pkl exp/release/vitdet-base-maskrcnn.pth --whole``, then ``python
tools/test.py det_configs/vitdet_base_maskrcnn.py exp/release/vitdet-base-maskrcnn.pth``. AP box: published 51.6 (mask
45.9); measured: not run.

Training: ``tools/dist_train.sh det_configs/vitdet_base_maskrcnn.py 8 --amp`` (8 GPUs x 8 images). Weights: ``python
tools/convert_checkpoint.py mae_pretrain_vit_base.pth exp/release/mae-vit-base.backbone.pth --img-size 224``.
"""

_base_ = './addp_base_maskrcnn.py'

model = dict(
    backbone=dict(
        pretrain_img_size=224,  # MAE
        init_cfg=dict(checkpoint='exp/release/mae-vit-base.backbone.pth'),
    )
)
