"""ADDP ViT-L, Faster R-CNN: the Mask R-CNN leaf without its mask branch, for data that have boxes but no masks.

Command: ``tools/dist_train.sh det_configs/addp_large_fasterrcnn.py 8 --amp`` (8 GPUs x 8 images).
AP box: published none; measured: not run.
"""

_base_ = ['./addp_large_maskrcnn.py', './_base_/boxes_only.py']

model = _base_.boxes_only.model
train_pipeline = [dict(step, **_base_.boxes_only.steps.get(step['type'], {})) for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = test_evaluator = _base_.boxes_only.evaluator
