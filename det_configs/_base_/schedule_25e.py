"""Schedule: the 100-epoch recipe cut to 25 epochs (assumption: nobody published a short one for ADDP).

Warm-up, learning rate and decay stay; the milestones stand at the same shares of the run, 8/9 and 26/27.
"""

_base_ = './schedule_100e.py'

num_iters = round(25 / 100 * _base_.train_cfg.max_iters)
train_cfg = dict(max_iters=num_iters)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], milestones=[round(num_iters * 8 / 9), round(num_iters * 26 / 27)]),
]
