"""What runs faster on CUDA and changes no result, switched on where a config leaves it open.

Torch's and mmengine's defaults are the slower ones. :func:`use_cuda_options` turns on pinned batches, copies that do
not block, AdamW in one kernel and gradients that live in the buckets of their reduction; a config that names an option
keeps its value. :class:`BenchmarkWhileTraining` is for trainings whose images have one size.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner

from addp_backbone.runtime.scale_lr import optim_wrappers

_FUSED = ('Adam', 'AdamW')


def use_cuda_options(cfg: Config, cuda: bool | None = None) -> None:
    """Switches on, in place, what a config leaves open; does nothing without CUDA.

    - ``pin_memory`` of every data loader with workers, ``non_blocking`` of the data preprocessor where it has it;
    - ``fused`` of Adam and AdamW, but not with shards (FSDP), where it was never compared;
    - ``gradient_as_bucket_view`` of DistributedDataParallel.

    Args:
        cfg: Config of a training or a test, as for the Runner, launcher included.
        cuda: Whether there is CUDA; None looks.
    """
    if not (torch.cuda.is_available() if cuda is None else cuda):
        return
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader and loader.get('num_workers', 0) > 0:
            loader.setdefault('pin_memory', True)
    preprocessor = cfg.model.get('data_preprocessor')
    if isinstance(preprocessor, MutableMapping) and _takes_non_blocking(cfg, preprocessor):
        preprocessor.setdefault('non_blocking', True)
    sharded = bool(cfg.get('strategy'))
    for _, wrapper in optim_wrappers(cfg) if cfg.get('optim_wrapper') and not sharded else ():
        optimizer = wrapper.get('optimizer') or {}
        if optimizer.get('type') in _FUSED and not optimizer.get('foreach'):
            optimizer.setdefault('fused', True)
    if cfg.get('launcher', 'none') != 'none' and not sharded:
        wrapper_cfg = data_parallel_options(cfg)
        if wrapper_cfg['type'] == 'MMDistributedDataParallel':
            wrapper_cfg.setdefault('gradient_as_bucket_view', True)
        cfg.model_wrapper_cfg = wrapper_cfg


def data_parallel_options(cfg: Config) -> dict[str, Any]:
    """``model_wrapper_cfg`` of a config, a new dict; mmengine's options where the config has none."""
    own = cfg.get('model_wrapper_cfg') or dict(
        broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False)
    )
    return {'type': 'MMDistributedDataParallel', **own}


def _takes_non_blocking(cfg: Config, preprocessor: Mapping[str, Any]) -> bool:
    kind = preprocessor.get('type')
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:  # mmdet's, for a detector
            kind = registry.get(kind)
    return kind is not None and 'non_blocking' in inspect.signature(kind).parameters


@HOOKS.register_module()
class BenchmarkWhileTraining(Hook):
    """Lets cuDNN measure which convolution is fastest, in training only.

    For trainings whose images all have one size: every new shape costs the measurement again, so that validation, whose
    images come in many sizes, goes without it, and so do detectors, whose heads see another number of boxes each time.
    Without CUDA the flag means nothing.
    """

    def before_train(self, runner: Runner) -> None:
        """Switches the measurement on."""
        torch.backends.cudnn.benchmark = True

    def before_val(self, runner: Runner) -> None:
        """Switches it off for a validation."""
        torch.backends.cudnn.benchmark = False

    def after_val(self, runner: Runner) -> None:
        """Switches it on again, for the training that goes on."""
        torch.backends.cudnn.benchmark = runner._train_loop is not None and not isinstance(runner._train_loop, dict)

    def after_train(self, runner: Runner) -> None:
        """Switches it off."""
        torch.backends.cudnn.benchmark = False
