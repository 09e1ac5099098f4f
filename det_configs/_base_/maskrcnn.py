"""Model: Mask R-CNN on a plain ViT with a simple feature pyramid (ViTDet, arXiv 2203.16527).

Recipe: ViTDet; the ADDP paper's own detection values are unpublished. "d2" marks values of detectron2's Mask R-CNN
defaults, which ViTDet keeps. A leaf sets ``backbone.arch`` and, with it, ``neck.in_channels`` (the arch's width).
"""

norm_cfg = dict(type='ChannelLN', eps=1e-6)  # ViTDet: LayerNorm over channels in box and mask heads
image_size = 1024  # ViTDet: training and test images are padded to this square

model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        # ImageNet's mean and std, as in ADDP's encoder (there for pixels in [0, 1], here in [0, 255])
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        # images have sides up to 1024, so this pads them to 1024 x 1024, in training and in tests (d2: square_pad=1024)
        pad_size_divisor=image_size,
    ),
    backbone=dict(
        type='ADDPViT',
        img_size=image_size,
        patch_size=16,
        pretrain_img_size=256,  # ADDP pre-trains at 256 px
        window_size=14,  # ViTDet; the four global blocks follow from arch
        rel_pos=True,  # ViTDet
        init_cfg=dict(type='Pretrained', checkpoint='exp/release/addp-vit-base-16.backbone.pth'),
    ),
    neck=dict(type='SimpleFeaturePyramid', out_channels=256, scales=(4, 2, 1, 0.5), num_outs=5),  # ViTDet
    rpn_head=dict(
        type='addp_backbone.detection.heads.Detectron2RPNHead',  # d2: losses averaged over 256 anchors an image
        in_channels=256,
        feat_channels=256,
        num_convs=2,  # ViTDet
        anchor_generator=dict(  # d2: sides 32, 64, 128, 256, 512
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]
        ),  # d2
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
    ),  # d2: smooth L1 with beta 0
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='addp_backbone.detection.roi_extractor.Float32RoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0, use_torchvision=True),  # d2
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            in_channels=256,
            num_shared_convs=4,  # ViTDet
            num_shared_fcs=1,  # ViTDet
            conv_out_channels=256,
            fc_out_channels=1024,
            norm_cfg=norm_cfg,
            roi_feat_size=7,
            num_classes=80,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]
            ),  # d2
            reg_class_agnostic=False,  # d2
            init_cfg=[  # d2
                dict(type='Normal', std=0.01, override=dict(name='fc_cls')),
                dict(type='Normal', std=0.001, override=dict(name='fc_reg')),
                dict(type='Caffe2Xavier', override=dict(name='shared_fcs')),  # mmdet's own is wider, std 0.0121
            ],
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),  # d2: smooth L1 with beta 0
        mask_roi_extractor=dict(
            type='addp_backbone.detection.roi_extractor.Float32RoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0, use_torchvision=True),  # d2
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        mask_head=dict(
            type='addp_backbone.detection.heads.Detectron2MaskHead',  # d2: its targets; std 0.001 in the last layer
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            norm_cfg=norm_cfg,
            num_classes=80,
            class_agnostic=False,  # d2
            # d2's mean over all positive boxes of a GPU; a departure in scale: ViTDet has 1 image a GPU, the leaves 8
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(  # d2
            assigner=dict(
                type='addp_backbone.detection.assigner.Detectron2Assigner',
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
            ),
            sampler=dict(
                type='addp_backbone.detection.sampler.DeviceRandomSampler',
                num=256,
                pos_fraction=0.5,
                neg_pos_ub=-1,
                add_gt_as_proposals=False,
            ),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(  # d2: 2000 a level before, 1000 an image after suppression
            nms_pre=2000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0
        ),
        rcnn=dict(  # d2
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
                ignore_iof_thr=-1,
            ),
            sampler=dict(
                type='addp_backbone.detection.sampler.DeviceRandomSampler',
                num=512,
                pos_fraction=0.25,
                neg_pos_ub=-1,
                add_gt_as_proposals=True,
            ),
            mask_size=28,
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),  # d2
        rcnn=dict(  # d2
            score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5
        ),
    ),
)
