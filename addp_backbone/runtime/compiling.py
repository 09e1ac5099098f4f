"""``--compile``: the networks of a model by torch.compile, each part by itself.

mmengine's ``compile`` option takes the whole training step, whose data-dependent parts (boxes, samplers, logs) break
the graph again and again. Here only networks are compiled: the backbone of a detector, segmentor or classifier, and
what a model of pre-training names in ``compile_parts``. Modules are compiled in place, so that checkpoints keep their
names. Shapes: a part is compiled for the first size it meets, and for any size when it meets a second one.
"""

from __future__ import annotations

import os
import shutil
from typing import Protocol, runtime_checkable

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import nn

from addp_backbone.runtime.config_checks import LaunchError

BACKBONE = 'backbone'
_COMPILERS = ('g++', 'clang++', 'gcc', 'cc')


@runtime_checkable
class HasParts(Protocol):
    """A model that says itself what can be compiled."""

    def compile_parts(self, backend: str) -> list[str]:
        """Compiles the parts in place; returns their names."""


def check_compile(cfg: Config) -> None:
    """Refuses ``--compile`` where it cannot work, before anything long begins.

    Args:
        cfg: Training config.

    Raises:
        LaunchError: If the training is sharded (FSDP), where it was never tried; if the config has mmengine's
            ``compile`` too; or if there is no C or C++ compiler.
    """
    if cfg.get('strategy'):
        raise LaunchError('--compile was never tried with shards (strategy in the config): leave one of the two out')
    if cfg.get('compile'):
        raise LaunchError("--compile compiles networks, the config's compile the whole step: leave one of the two out")
    named = [os.environ[name] for name in ('CXX', 'CC') if os.environ.get(name)]
    if not any(shutil.which(name) for name in (*named, *_COMPILERS)):
        raise LaunchError(
            f'--compile needs a C++ compiler, found none of {", ".join((*named, *_COMPILERS))}: install g++, or set CXX'
        )


def compile_networks(model: nn.Module, backend: str = 'inductor') -> list[str]:
    """Compiles the networks of a model in place; the work itself is done when they first run.

    Args:
        model: A model as the Runner has it, wrapped for several processes or not.
        backend: Of torch.compile.

    Returns:
        The names of the parts.

    Raises:
        LaunchError: If the model has neither ``compile_parts`` nor a backbone.
    """
    while is_model_wrapper(model):
        model = model.get_submodule('module')
    if isinstance(model, HasParts):
        return model.compile_parts(backend)
    backbone = getattr(model, BACKBONE, None)
    if not isinstance(backbone, nn.Module):
        raise LaunchError(f'--compile: {type(model).__name__} has no part that can be compiled')
    backbone.compile(backend=backend)
    return [BACKBONE]
