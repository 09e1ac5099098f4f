"""Tiny tokenizer, the first of three commands from a folder of images to a pre-trained ViT (no GPU needed).

python tools/train.py pretrain/configs/tokenizer_tiny.py --cfg-options train_dataloader.dataset.data_root=FOLDER
python tools/train.py pretrain/configs/token_predictor_tiny.py --cfg-options train_dataloader.dataset.data_root=FOLDER
python tools/train.py pretrain/configs/addp_tiny.py --cfg-options train_dataloader.dataset.data_root=FOLDER

Each finds its predecessor's latest checkpoint in ``work_dirs/``.
"""

_base_ = ['_base_/tiny.py', '_base_/runtime.py']

max_iters = 600

model = dict(
    type='TokenizerTraining',
    tokenizer=_base_.tokenizer,
    objective=dict(quantize_from_iters=100),
    init_cfg=dict(tokenizer=None),
)

train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(optimizer=dict(lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0), clip_grad=dict(max_norm=1.0))
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=500),
    figure=dict(interval=200),
    revive_codes=dict(type='ReviveCodesHook', interval=10, stop_after_iters=450),
)
log_processor = dict(window_size=20)
