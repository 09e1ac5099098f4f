"""Tiny ViT, Faster R-CNN: the tiny Mask R-CNN leaf without its mask branch, for data that have boxes but no masks.

Command: ``python tools/train.py det_configs/addp_tiny_fasterrcnn.py`` (no GPU needed).
"""

_base_ = ['./addp_tiny_maskrcnn.py', './_base_/boxes_only.py']

model = _base_.boxes_only.model
train_pipeline = [dict(step, **_base_.boxes_only.steps.get(step['type'], {})) for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = test_evaluator = _base_.boxes_only.evaluator
