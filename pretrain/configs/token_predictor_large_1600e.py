"""Token predictor (MAGE ViT-Large) from scratch.

Command: ``tools/dist_train.sh pretrain/configs/token_predictor_large_1600e.py 64``. Everything else as in
token_predictor_base_1600e.py. Result: not run.
"""

_base_ = './token_predictor_base_1600e.py'

model = dict(token_predictor=dict(arch='large'))
