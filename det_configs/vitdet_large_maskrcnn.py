"""ViT-L of ViTDet, Mask R-CNN, COCO, 100 epochs from MAE's weights: detectron2's recipe and model.

Released file: ``model_final_6146ed.pkl`` (model id 325599698 in the README of detectron2's projects/ViTDet). ``python
tools/convert_checkpoint.py model_final_6146ed.pkl exp/release/vitdet-large-maskrcnn.pth --whole``, then ``python
tools/test.py det_configs/vitdet_large_maskrcnn.py exp/release/vitdet-large-maskrcnn.pth``. AP box: published 55.5
(mask 49.2); measured: not run.

Training: ``tools/dist_train.sh det_configs/vitdet_large_maskrcnn.py 8 --amp`` (8 GPUs x 8 images; short of memory:
``--cfg-options model.backbone.with_cp=True``). Weights: ``python tools/convert_checkpoint.py
mae_pretrain_vit_large.pth exp/release/mae-vit-large.backbone.pth --img-size 224``.
"""

_base_ = './addp_large_maskrcnn.py'

model = dict(
    backbone=dict(
        pretrain_img_size=224,  # MAE
        init_cfg=dict(checkpoint='exp/release/mae-vit-large.backbone.pth'),
    )
)
