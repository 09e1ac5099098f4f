"""ADDP ViT-Base fine-tuned on ImageNet, with an exponential moving average (EMA) of the weights.

Ours, not in the published recipe. The average is what is evaluated, and what checkpoints hold as ``state_dict``.
Command: ``tools/dist_train.sh pretrain/configs/finetune_base_100e_ema.py 8``. Top-1: measured: not run. Any other
config: ``--cfg-options default_hooks.ema.type=EMAHook default_hooks.ema.momentum=1e-4``.
"""

_base_ = './finetune_base_100e.py'

default_hooks = dict(ema=dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=1e-4))
