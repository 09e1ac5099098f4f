"""Model: Cascade Mask R-CNN, i.e. the Mask R-CNN beside with three box heads in a row (ViTDet).

Values are detectron2's, which ViTDet keeps, but for ``stage_loss_weights``: detectron2 weighs the stages equally and
scales their gradient into the pyramid by 1/3, for which mmdet has no option; its own weights are taken (assumption).
"""

_base_ = './maskrcnn.py'

model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            dict(
                _base_.model.roi_head.bbox_head,
                reg_class_agnostic=True,
                bbox_coder=dict(_base_.model.roi_head.bbox_head.bbox_coder, target_stds=[xy, xy, wh, wh]),
            )
            for xy, wh in ((0.1, 0.2), (0.05, 0.1), (1 / 30, 1 / 15))
        ],
    ),
    train_cfg=dict(
        rcnn=[
            dict(
                _base_.model.train_cfg.rcnn,
                assigner=dict(_base_.model.train_cfg.rcnn.assigner, pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou),
            )
            for iou in (0.5, 0.6, 0.7)
        ]
    ),
)
