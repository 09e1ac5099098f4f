"""Fully sharded data parallelism (FSDP) with what mmengine's strategy lacks.

mmengine's ``FSDPStrategy`` cannot resume, clips gradients by each rank's own norm, and writes checkpoints without the
loss scale, in a way that a kill can tear. ``det_configs/_base_/fsdp.py`` uses :class:`StageFSDPStrategy` instead;
:func:`check_sharding` refuses what cannot be right with shards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import mmengine
import torch
from mmengine._strategy.fsdp import FSDPStrategy
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from mmengine.registry import STRATEGIES
from mmengine.runner.checkpoint import save_checkpoint
from torch import Tensor, nn
from torch.distributed.fsdp import FullOptimStateDictConfig, FullyShardedDataParallel

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.matching import match_tensors
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.layer_decay import remember_shapes
from addp_backbone.runtime.runner import check_weights, describe_start
from addp_backbone.runtime.saving import ATOMIC_BACKEND, BadLossError

SHARDED_STRATEGIES = ('FSDPStrategy', 'StageFSDPStrategy')
# What mmengine's optimizer wrappers keep beside the optimizer's own state.
_WRAPPER_STATE = ('base_param_settings', 'loss_scaler')


def check_sharding(cfg: Config) -> None:
    """Refuses what cannot be right with FSDP, and has mmengine's own strategy replaced by ours; may change ``cfg``.

    Args:
        cfg: Training config.

    Raises:
        LaunchError: If there are no processes to share the model, or the config trains norms or low-rank differences
            alone, averages weights (EMA), keeps shards in separate files, or merges the parameters that layer-wise
            decay tells apart.
    """
    strategy = cfg.get('strategy') or {}
    if strategy and cfg.get('runner_type') in (None, 'FlexibleRunner'):
        cfg.runner_type = 'StageFlexibleRunner'  # the other runner would pass over the strategy
    if strategy.get('type') not in SHARDED_STRATEGIES:
        return
    strategy['type'] = 'StageFSDPStrategy'
    if cfg.get('launcher') == 'none':
        raise LaunchError(
            'FSDP (strategy.type=FSDPStrategy) spreads the model over processes, and --launcher is none: start with '
            'tools/dist_train.sh CONFIG PROCESSES (1 works, too), or train without sharding (another leaf than '
            '*_fsdp.py)'
        )
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    partial = [name for name in ('norms_only', 'lora') if backbone.get(name)]
    if partial:
        raise LaunchError(
            f'model.backbone.{partial[0]} does not go with FSDP (strategy.type=FSDPStrategy): partial fine-tuning '
            'needs no shards, train without (another leaf than *_fsdp.py)'
        )
    averaging = [hook['type'] for hook in cfg.get('custom_hooks') or [] if str(hook['type']).endswith('EMAHook')]
    if averaging:
        raise LaunchError(
            f'custom_hooks has {averaging[0]}, which copies the whole model; with FSDP (strategy.type=FSDPStrategy) no '
            'process has it. Leave the hook out, or train without sharding (another leaf than *_fsdp.py)'
        )
    if strategy.get('state_dict_cfg', 'full') != 'full':
        raise LaunchError(
            f'strategy.state_dict_cfg is {strategy["state_dict_cfg"]!r}, wanted full: only whole checkpoints are '
            'written atomically, verified and read by the other tools'
        )
    if not (strategy.get('model_wrapper') or {}).get('use_orig_params', True):
        raise LaunchError(
            'strategy.model_wrapper.use_orig_params is False, wanted True: without it a shard is one parameter, with '
            'one learning rate and weight decay for all its layers'
        )


@STRATEGIES.register_module()
class StageFSDPStrategy(FSDPStrategy):
    """mmengine's FSDP strategy (same arguments), made right.

    - Parameter groups are made from whole shapes, not from the flat ones of shards.
    - Gradients are clipped by the norm over all ranks.
    - Checkpoints are whole, hold the optimizer wrapper's state too (loss scale, base learning rates), are written
      atomically and signed, and never hold weights that are not finite.
    - Resuming needs every tensor of the model and of the optimizer.

    Raises:
        ValueError: If ``state_dict_cfg`` is not 'full'.
    """

    def __init__(self, *, state_dict_cfg: str = 'full', **options: Any) -> None:
        if state_dict_cfg != 'full':
            raise ValueError(f"state_dict_cfg is {state_dict_cfg!r}, wanted 'full' (whole checkpoints)")
        super().__init__(state_dict_cfg=state_dict_cfg, **options)
        self.whole_tensors: dict[str, Tensor] = {}
        self.resuming = False

    def build_model(self, model: nn.Module | dict[str, Any]) -> nn.Module:
        """Builds the model and remembers the shapes that sharding will hide."""
        built = super().build_model(model)
        remember_shapes(built)
        self.whole_tensors = {name: tensor.to('meta') for name, tensor in built.state_dict().items()}
        return built

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if not torch.cuda.is_available():  # mmengine would take the CUDA device of the local rank
            own: dict[str, Any] = self.model_wrapper or {}  # type: ignore[has-type]
            self.model_wrapper = {'device_id': torch.device('cpu'), **own}
        model = super()._wrap_model(model)
        if isinstance(model, FullyShardedDataParallel) and model.compute_device == torch.device('cpu'):
            # torch gathers every kind of optimizer state into one buffer, and moving a CPU tensor to the CPU copies
            # nothing: all kinds would be saved with the values of the last. Without offloading it copies.
            self.optim_state_dict_config = FullOptimStateDictConfig(rank0_only=True, offload_to_cpu=False)
            model.set_state_dict_type(model, self.state_dict_type, self.state_dict_config, self.optim_state_dict_config)
        return model

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> BaseOptimWrapper:
        """Builds the optimizer wrapper; its gradient clipping goes by the norm over all ranks.

        Raises:
            ValueError: If there are several optimizers.
        """
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if isinstance(wrapper, OptimWrapperDict):
            raise ValueError('FSDP trains with one optimizer, but optim_wrapper has several: train without sharding')
        if wrapper.clip_grad_kwargs and wrapper.clip_func is torch.nn.utils.clip_grad_norm_:
            assert isinstance(model, FullyShardedDataParallel)
            wrapper.clip_func = partial(clip_by_global_norm, model)
        return wrapper

    def optim_state_dict(self) -> dict[str, Any]:
        """The whole optimizer state by parameter names on rank 0, and the wrapper's own state."""
        optimizer = self.optim_wrapper.optimizer
        state = FullyShardedDataParallel.optim_state_dict(self.model, optimizer)
        ours = self.optim_wrapper.state_dict()
        return {**state, **{name: ours[name] for name in _WRAPPER_STATE if name in ours}}

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what :meth:`optim_state_dict` gave, on every rank.

        Raises:
            CheckpointError: If the state is that of an unsharded run, or lacks trained parameters.
        """
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        wanted = {name.replace('_fsdp_wrapped_module.', '') for name in trained}
        if missing := sorted(wanted - set(state_dict['state'])):
            raise CheckpointError(
                f'the optimizer state lacks {len(missing)} of {len(wanted)} trained parameters, among them '
                f'{", ".join(missing[:3])}: an FSDP run goes on from checkpoints of FSDP runs of the same config. From '
                'another run take the weights alone: --cfg-options load_from=CKPT without --resume'
            )
        sharded = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model,
            optim=self.optim_wrapper.optimizer,
            optim_state_dict={'state': state_dict['state'], 'param_groups': state_dict['param_groups']},
        )
        extra = {name: state_dict[name] for name in _WRAPPER_STATE if name in state_dict}
        self.optim_wrapper.load_state_dict({**sharded, **extra})

    def load_model_state_dict(
        self, state_dict: dict[str, Tensor], *, strict: bool = False, revise_keys: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Loads whole weights; resuming needs all of them, starting from weights passes over what does not fit.

        Raises:
            CheckpointError: If resuming, and tensors are missing, left over or of another shape; otherwise as
                :meth:`StageRunner.load_checkpoint`.
        """
        state_dict = {name.removeprefix('module.'): tensor for name, tensor in state_dict.items()}
        if self.resuming or strict:
            check_weights('the checkpoint', state_dict, self.whole_tensors)
        else:
            print_log(describe_start('the checkpoint', state_dict, self.whole_tensors), logger='current')
            mismatch = match_tensors(state_dict, self.whole_tensors)
            unfit = {*mismatch.unexpected, *mismatch.shapes, *mismatch.kinds}
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in unfit}
        self.model.load_state_dict(state_dict, strict=False)  # compared above, with the shapes before sharding

    def resume(self, filename: str, **options: Any) -> dict[str, Any]:
        """Goes on from a checkpoint; arguments as mmengine's.

        The file is read onto the CPU of every rank: whole on a GPU it might not fit.

        Raises:
            CheckpointError: If it does not hold the whole state.
        """
        self.resuming = True
        try:
            return super().resume(filename, **{**options, 'map_location': 'cpu'})
        finally:
            self.resuming = False

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Gathers the state, on all ranks together, and writes it on rank 0; arguments as mmengine's.

        Raises:
            BadLossError: If a weight is not finite; nothing is written.
        """
        checkpoint: dict[str, Any] = {'state_dict': self.model_state_dict()}
        if save_optimizer and hasattr(self, 'optim_wrapper'):
            checkpoint['optimizer'] = self.optim_state_dict()
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            checkpoint['param_schedulers'] = self.scheduler_state_dict()
        checkpoint.update(extra_ckpt or {})
        checkpoint.setdefault('meta', {}).update(
            seed=self.seed, time=time.strftime('%Y%m%d_%H%M%S', time.localtime()), mmengine=mmengine.__version__
        )
        if callback is not None:
            callback(checkpoint)
        if not is_main_process():
            return
        weights = checkpoint['state_dict']
        bad = [name for name in self.id_to_name.values() if name in weights and not weights[name].isfinite().all()]
        if bad:  # a rank sees its own shards only, so that StopOnBadLoss may see none of this on rank 0
            raise BadLossError(f'{len(bad)} parameters are not finite, among them {", ".join(bad[:3])}: not saved')
        save_checkpoint(checkpoint, filename, backend_args=dict(backend=ATOMIC_BACKEND))


def clip_by_global_norm(
    model: FullyShardedDataParallel, parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0
) -> Tensor:
    """Scales all gradients so that their norm over all ranks is at most ``max_norm``; called on all ranks together.

    Args:
        model: The root of the sharded model.
        parameters: Not used, as the root knows all of them; the signature is that of ``clip_grad_norm_``.
        max_norm: The largest norm, above 0.
        norm_type: 2 for the Euclidean norm, ``inf`` for the largest value.

    Returns:
        The norm before.
    """
    return model.clip_grad_norm_(max_norm, norm_type)
