"""Overlay: fully sharded data parallelism, for models that one GPU cannot hold.

List it beside any leaf, here or in seg_configs:

    _base_ = ['./addp_large_maskrcnn.py', './_base_/fsdp.py']

Weights, gradients and optimizer state are spread over the GPUs. Checkpoints hold whole weights, as those of other
runs; an FSDP run resumes from checkpoints of FSDP runs. Averaged weights (EMAHook) are refused.
"""

runner_type = 'StageFlexibleRunner'
strategy = dict(
    type='StageFSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        use_orig_params=True,  # layer-wise decay needs each parameter's name
        auto_wrap_policy='shard_vit_blocks',
    ),
    state_dict_cfg='full',
)
