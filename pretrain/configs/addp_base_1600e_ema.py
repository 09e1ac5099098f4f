"""ADDP pre-training, ViT-Base, with an exponential moving average (EMA) of the trained weights.

Ours, not in the published recipe. Checkpoints hold the average as ``state_dict``: it is what gets converted, fine-tuned
and generated with. Command: ``tools/dist_train.sh pretrain/configs/addp_base_1600e_ema.py 64``. Result: not run. Any
other config: ``--cfg-options default_hooks.ema.type=EMAHook default_hooks.ema.ema_type=TrainedPartEMA``.
"""

_base_ = './addp_base_1600e.py'

default_hooks = dict(ema=dict(type='EMAHook', ema_type='TrainedPartEMA', momentum=1e-4))
