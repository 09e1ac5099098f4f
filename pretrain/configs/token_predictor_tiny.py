"""Tiny token predictor, the second of three commands (see tokenizer_tiny.py).

Command: ``python tools/train.py pretrain/configs/token_predictor_tiny.py`` (no GPU needed). Result: not published.
"""

_base_ = ['_base_/tiny.py', '_base_/runtime.py']

model = dict(
    type='TokenPredictorTraining',
    token_predictor=_base_.token_predictor,
    tokenizer=_base_.tokenizer,
    img_size=_base_.img_size,
    init_cfg=dict(tokenizer='work_dirs/tokenizer_tiny'),
)

default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=500), figure=dict(interval=200))
log_processor = dict(window_size=20)
