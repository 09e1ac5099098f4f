"""Model: UperNet as in upernet.py on any plain ViT of timm, whose width and normalisation follow from its name.

``stride=16`` shows images to a ViT of other patches at patch / 16 of their size, so that levels mean what they mean for
MAE's UperNet.
"""

_base_ = './upernet.py'

model = dict(
    type='FitToBackbone',
    model_type='addp_backbone.networks.tiled_segmentor.TiledEncoderDecoder',
    data_preprocessor=dict(mean='backbone.mean', std='backbone.std'),
    backbone=dict(
        _delete_=True,
        type='TimmViT',
        model='vit_base_patch14_dinov2',
        img_size=512,
        out_indices='upernet',
        drop_path_rate=0.1,  # MAE
        stride=16,
        init_cfg=dict(type='Pretrained', checkpoint='exp/timm/vit_base_patch14_dinov2.safetensors'),
    ),
    neck=dict(embed_dim='backbone.width'),
    decode_head=dict(in_channels=['backbone.width'] * 4, channels='backbone.width'),
    auxiliary_head=dict(in_channels='backbone.width'),
)
