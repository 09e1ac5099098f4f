"""Token predictor (MAGE ViT-Large) from scratch; everything else as in token_predictor_base_1600e.py. Result: not run."""

_base_ = './token_predictor_base_1600e.py'

model = dict(token_predictor=dict(arch='large'))
