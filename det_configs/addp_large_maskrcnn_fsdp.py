"""ADDP ViT-L, Mask R-CNN, COCO, 100 epochs, sharded over the GPUs (FSDP): the same recipe in less memory.

Command: ``tools/dist_train.sh det_configs/addp_large_maskrcnn_fsdp.py 8`` (8 GPUs x 8 images).
AP box: published 54.6; measured: not run.
"""

_base_ = ['./addp_large_maskrcnn.py', './_base_/fsdp.py']
