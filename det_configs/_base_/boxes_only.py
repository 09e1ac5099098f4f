"""Overlay: a Mask R-CNN leaf without its mask branch (Faster R-CNN), for data that have boxes but no masks.

Listed beside a leaf, it says what changes; the new leaf takes the values, as sibling bases may not set the same key:

    _base_ = ['./addp_base_maskrcnn.py', './_base_/boxes_only.py']

    model = _base_.boxes_only.model
    train_pipeline = [
        dict(step, **_base_.boxes_only.steps.get(step['type'], {})) for step in _base_.train_pipeline
    ]
    train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
    val_evaluator = test_evaluator = _base_.boxes_only.evaluator
"""

boxes_only = dict(
    model=dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None)),
    steps=dict(LargeScaleJitter=dict(with_mask=False)),
    evaluator=dict(metric='bbox'),
)
