"""Model: Mask R-CNN as in maskrcnn.py on any plain ViT of timm, whose width and normalisation follow from its name.

``stride=16`` shows images to a ViT of other patches at patch / 16 of their size, so that anchors and RoIs mean what
they mean for ViTDet.
"""

_base_ = './maskrcnn.py'

model = dict(
    type='FitToBackbone',
    model_type='MaskRCNN',
    data_preprocessor=dict(mean='backbone.mean', std='backbone.std'),
    backbone=dict(
        _delete_=True,
        type='TimmViT',
        model='vit_base_patch14_dinov2',
        img_size=1024,
        window_size=14,  # ViTDet
        drop_path_rate='vitdet',
        stride=16,
        init_cfg=dict(type='Pretrained', checkpoint='exp/timm/vit_base_patch14_dinov2.safetensors'),
    ),
    neck=dict(in_channels='backbone.width'),
)
