"""A small plain ViT of timm, UperNet with the small heads of addp_tiny_upernet.py: for laptops and small data sets.

Command: ``python tools/train.py seg_configs/timm_tiny_upernet.py --cfg-options
model.backbone.init_cfg.checkpoint=FILE`` (no GPU needed; on own data inherit from this leaf). The backbone is frozen by
default. All values are ours, tuned on small data; nothing is published.
"""

_base_ = './addp_tiny_upernet.py'

model = dict(
    type='FitToBackbone',
    model_type='addp_backbone.networks.tiled_segmentor.TiledEncoderDecoder',
    data_preprocessor=dict(mean='backbone.mean', std='backbone.std'),
    backbone=dict(
        _delete_=True,
        type='TimmViT',
        model='vit_small_patch14_dinov2',
        img_size=256,
        out_indices='upernet',
        frozen=True,
        stride=8,
        norm_maps=True,
        init_cfg=dict(type='Pretrained', checkpoint='exp/timm/vit_small_patch14_dinov2.safetensors'),
    ),
    neck=dict(embed_dim='backbone.width'),
    decode_head=dict(in_channels=['backbone.width'] * 4),
    auxiliary_head=dict(in_channels='backbone.width'),
)
