"""Runtime of detection and segmentation: exact resume, a stop at bad losses, processes, logs.

Leaves of ``seg_configs`` list this file too. What belongs to one library (its scope, hooks and visualizer) is in
``mmdet.py`` here and in ``mmseg.py`` there: mmengine wants the top-level keys of sibling bases to be disjoint.
"""

custom_imports = dict(imports=['addp_backbone'], allow_failed_imports=False)

custom_hooks = [
    dict(type='SeedEachIteration'),  # a resumed run draws what the unbroken one would have drawn
    dict(type='StopOnBadLoss'),  # the last good checkpoint stays
    dict(type='CheckClasses'),  # of data, heads and checkpoint
]
randomness = dict(seed=0)

# Training samples that cannot be used and are replaced, at most (the smaller limit counts); all values ours
bad_samples = dict(max_count=100, max_share=0.01)

env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)

log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
