"""Model: Cascade Mask R-CNN, i.e. the Mask R-CNN beside with three box heads in a row and one mask head (ViTDet).

Values and procedure are detectron2's, which ViTDet keeps: proposals are sampled once, stages weigh the same and send a
third of their gradient into the pyramid, class probabilities are averaged (``Detectron2CascadeRoIHead``).
"""

_base_ = './maskrcnn.py'

model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        type='addp_backbone.detection.cascade.Detectron2CascadeRoIHead',
        bbox_head=[
            dict(
                _base_.model.roi_head.bbox_head,
                reg_class_agnostic=True,  # d2
                bbox_coder=dict(_base_.model.roi_head.bbox_head.bbox_coder, target_stds=[xy, xy, wh, wh]),
            )
            for xy, wh in ((0.1, 0.2), (0.05, 0.1), (1 / 30, 1 / 15))  # d2
        ],
    ),
    train_cfg=dict(
        rcnn=[
            dict(
                _base_.model.train_cfg.rcnn,
                assigner=dict(_base_.model.train_cfg.rcnn.assigner, pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou),
            )
            for iou in (0.5, 0.6, 0.7)  # d2; only the first stage samples
        ]
    ),
)
