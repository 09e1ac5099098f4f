"""ADDP ViT-B, Faster R-CNN: the Mask R-CNN leaf without its mask branch, for data that have boxes but no masks.

Command: ``tools/dist_train.sh det_configs/addp_base_fasterrcnn.py 8 --amp`` (8 GPUs x 8 images).
AP box: published none; measured: not run.
"""

_base_ = './addp_base_maskrcnn.py'

model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))
train_pipeline = [dict(step, with_mask=False) if 'with_mask' in step else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
