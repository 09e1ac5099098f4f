"""ADDP ViT-B, UperNet, ADE20K: test at six sizes and mirrored, predictions averaged.

For testing only; train with the leaf it inherits.

Command: ``tools/dist_test.sh seg_configs/addp_base_upernet_ms.py CHECKPOINT 8``.
mIoU: published 48.1 (whether at one size or at several is not said); measured: not run.
"""

_base_ = './addp_base_upernet.py'

model = dict(_delete_=True, **_base_.tta_model, module=_base_.model)
test_dataloader = dict(dataset=dict(pipeline=_base_.tta_pipeline))
