"""Runtime of pre-training: logs (text, JSON lines, TensorBoard), checkpoints, figures, exact resume, bad losses."""

default_scope = 'mmengine'
custom_imports = dict(imports=['pretrain.training'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=2000, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    throughput=dict(type='ThroughputHook'),  # images/s, and memory where there is no CUDA
    figure=dict(type='FigureHook', interval=2000),
)  # work_dir/figures/iter_*.png
custom_hooks = [
    dict(type='SeedEachIteration'),  # a resumed run draws what the unbroken one would have drawn, masks included
    dict(type='StopOnBadLoss'),  # the last good checkpoint stays
]
randomness = dict(seed=0)

# Training samples that cannot be used and are replaced, at most (the smaller limit counts); all values ours
bad_samples = dict(max_count=100, max_share=0.01)

env_cfg = dict(
    cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)

vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)

log_level = 'INFO'
load_from = None
resume = False
