"""What a run has from mmdet: scope, hooks and visualizer. The rest of the runtime is in ``runtime.py``."""

default_scope = 'mmdet'

default_hooks = dict(  # timer, scheduler and sampler hooks are mmengine's defaults
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=3),
    visualization=dict(type='DetVisualizationHook'),
)

vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
