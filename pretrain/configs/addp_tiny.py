"""Tiny ADDP, the third of three commands (see tokenizer_tiny.py).

Command: ``python tools/train.py pretrain/configs/addp_tiny.py`` (no GPU needed). Afterwards ``python
tools/convert_checkpoint.py work_dirs/addp_tiny/iter_600.pth backbone.pth --patch-size 8 --img-size 128`` makes weights
for the tiny leaves of det_configs and seg_configs, whose patches are 8 px wide.
"""

_base_ = ['_base_/tiny.py', '_base_/runtime.py']

model = dict(
    type='ADDPPretraining',
    network=dict(
        arch='tiny',
        decoder_depth=1,
        decoder_num_heads=3,
        frozen_dtype='auto',
        token_dropout=0.75,  # or the decoder does without the encoder
        img_size=_base_.img_size,
        patch_size=_base_.patch_size,
        tokenizer=_base_.tokenizer,
        token_predictor=_base_.token_predictor,
        dropout=_base_.dropout,
        position_waves=True,
    ),
    init_cfg=dict(tokenizer='work_dirs/tokenizer_tiny', token_predictor='work_dirs/token_predictor_tiny'),
)

default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=500), figure=dict(interval=200))
log_processor = dict(window_size=20)
