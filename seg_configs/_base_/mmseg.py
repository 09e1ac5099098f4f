"""What a run has from mmseg: scope, hooks, visualizer and test-time augmentation.

The rest of the runtime is in ``det_configs/_base_/runtime.py``, which both tasks share.
"""

default_scope = 'mmseg'

default_hooks = dict(  # timer, scheduler and sampler hooks are mmengine's defaults
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=16000, max_keep_ckpts=3),
    visualization=dict(type='SegVisualizationHook'),
    benchmark=dict(type='BenchmarkWhileTraining'),  # crops have one size, validation has many
)

vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')

tta_model = dict(type='SegTTAModel')
