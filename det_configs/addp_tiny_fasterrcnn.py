"""Tiny ViT, Faster R-CNN: the tiny Mask R-CNN leaf without its mask branch, for data that have boxes but no masks.

Command: ``python tools/train.py det_configs/addp_tiny_fasterrcnn.py`` (no GPU needed).
"""

_base_ = './addp_tiny_maskrcnn.py'

model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))
train_pipeline = [dict(step, with_mask=False) if 'with_mask' in step else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
