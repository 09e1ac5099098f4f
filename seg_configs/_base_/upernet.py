"""Model: UperNet on a plain ViT, with an FCN auxiliary head (MAE, arXiv 2111.06377, after BEiT).

Recipe: MAE, by mmsegmentation's ``configs/mae``; the ADDP paper's own segmentation values are unpublished. A leaf sets
``backbone.arch`` and, with it, the five widths.
"""

norm_cfg = dict(type='SyncBN', requires_grad=True)  # the tools turn it into BN where it cannot run (CPU, one process)
crop_size = (512, 512)  # MAE

model = dict(
    type='addp_backbone.networks.tiled_segmentor.TiledEncoderDecoder',  # mmseg's; class maps of large images in bands
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        # ImageNet's mean and std, as in ADDP's encoder (there for pixels in [0, 1], here in [0, 255])
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
        test_cfg=dict(size=crop_size),
    ),  # pads only images narrower than a crop (aspect ratio over 4, small test scales)
    backbone=dict(
        type='ADDPSegViT',  # cls token, a bias table for each head, LayerScale from 1 (MAE)
        img_size=512,
        patch_size=16,
        out_indices='upernet',  # follows from arch
        init_cfg=dict(type='Pretrained', checkpoint='exp/release/addp-vit-base-16.pth'),
    ),
    neck=dict(type='Feature2Pyramid', rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),  # BEiT
    decode_head=dict(
        type='UPerHead',
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=False, loss_weight=1.0),
    ),  # the mean counts void pixels, as in MAE
    auxiliary_head=dict(
        type='FCNHead',
        in_index=2,  # the third level (BEiT)
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=False, loss_weight=0.4),
    ),  # BEiT
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(341, 341)),
)  # MAE
