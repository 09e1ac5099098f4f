"""Refuses option names that nothing reads, anywhere in a config.

A misspelt name below a ``type`` ends in an error when the class is built; one in a dict without ``type``
(``model.test_cfg.rcnn.score_threshold``) is silently ignored, and the default is measured. Both are found here, before
anything is built. What a name may be is told by the signatures and sources of the classes that the config names
(:mod:`addp_backbone.runtime.accepted_names`), so that own classes of a config need no list here.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mmcv import ops
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.registry import (
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    TASK_UTILS,
    WEIGHT_INITIALIZERS,
    Registry,
)
from mmengine.runner import Runner, set_random_seed
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from addp_backbone.runtime.accepted_names import (
    REGISTRIES,
    argument_names,
    find_type,
    is_known_code,
    names_mentioned,
    names_read,
    names_taken,
)
from addp_backbone.runtime.config_checks import OTHER_RUNNER_OPTIONS, LaunchError, closest

# Dicts whose keys are the user's own: class names, parameter names, arguments of a storage client.
FREE_FORM = ('metainfo', 'meta', 'custom_keys', 'backend_args', 'file_client_args', 'init_kwargs', 'caption_prompt')
PICKED = ('train_cfg', 'test_cfg', 'filter_cfg', 'data_prefix')  # dicts of which code picks the names it knows
PICKED_PARTS = (*PICKED, 'rpn', 'rcnn', 'rpn_proposal')
NEARLY_THE_SAME = 0.92  # trian_dataloader is train_dataloader, test_pipeline is not tta_pipeline
# set by mmdet's configs, whether the classes read them or not
UNREAD = ('assigner', 'sampler', 'allowed_border', 'pos_weight', 'debug', 'filter_empty_gt', 'min_size')
POPPED = ('type', '_scope_', 'priority', 'requires_grad')  # read by whoever builds the class, not by the class

Kinds = list[Callable[..., Any]]


def _arguments(*functions: Callable[..., Any]) -> set[str]:
    return {name for function in functions for name in argument_names(function) or ()}


# Dicts without type that mmengine's Runner and this project read.
PLAIN_DICTS: dict[str, set[str]] = {
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit', 'tf32'},
    'env_cfg.mp_cfg': {'mp_start_method', 'opencv_num_threads'},
    'env_cfg.dist_cfg': {*_arguments(init_dist), 'backend', 'timeout', 'port', 'init_method', 'master_addr'},
    'randomness': _arguments(set_random_seed),
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'bad_samples': {'max_count', 'max_share'},
    'optim_wrapper.clip_grad': {'type', *_arguments(clip_grad_norm_, clip_grad_value_)} - {'parameters'},
}
NMS_WRAPPER = ('type', 'class_agnostic', 'split_thr', 'iou_thr', 'max_num')  # of mmcv.ops.batched_nms
DATALOADER = {*_arguments(DataLoader), 'type', 'num_batch_per_epoch'}
LOOP_TYPES = {
    'train_cfg': {True: 'EpochBasedTrainLoop', False: 'IterBasedTrainLoop'},
    'val_cfg': 'ValLoop',
    'test_cfg': 'TestLoop',
}


def check_names(cfg: Config) -> None:
    """Refuses option names that no code reads.

    Variables at a config's top level are the user's own and pass, unless they are nearly the name of an option.

    Args:
        cfg: A config whose ``custom_imports`` have run.

    Raises:
        LaunchError: With the option's full name, and the name that was probably meant.
    """
    runner = {*inspect.signature(Runner.__init__).parameters, *OTHER_RUNNER_OPTIONS}
    names = set(cfg.keys())
    for name in sorted(names - runner):
        meant = difflib.get_close_matches(name, runner, n=1, cutoff=NEARLY_THE_SAME)
        if meant:
            raise LaunchError(f'the config sets {name}, which nothing reads: did you mean {meant[0]}?')
    walk = _Walk(cfg.get('default_scope') or 'mmengine')
    for name in sorted(names & runner):
        walk.check(cfg[name], name)


class _Walk:
    """Goes through a config's tree; knows which classes the dict around a value belongs to."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.model_kinds: Kinds = []

    def check(self, node: Any, path: str, owner: Kinds | None = None) -> None:
        """Checks the names of a value and of all below it.

        Args:
            node: A value of a config.
            path: Its option name.
            owner: The class that gets it as an argument.
        """
        if isinstance(node, list | tuple):
            for index, child in enumerate(node):
                self.check(child, f'{path}.{index}', owner)
            return
        key = _last_name(path)
        if not isinstance(node, Mapping) or key in FREE_FORM:
            return
        if path == 'model':
            self.model_kinds = [kind for kind in self._types_within(node) if kind is not None]
        kind = self._kind_of(node, path)
        allowed = self._allowed(node, path, kind, owner)
        if allowed is not None:
            self._refuse_unknown(node, path, allowed)
        for name, child in node.items():
            inner = node.get('constructor', 'DefaultOptimWrapperConstructor') if name == 'paramwise_cfg' else None
            builder = find_type(inner, self.scope, [OPTIM_WRAPPER_CONSTRUCTORS]) if inner else kind
            self.check(child, f'{path}.{name}', [builder] if builder else owner)

    def _refuse_unknown(self, node: Mapping[str, Any], path: str, allowed: set[str]) -> None:
        for name in node:
            if isinstance(name, str) and name.isidentifier() and name not in allowed:
                others = ', '.join(str(other) for other in node if other != name)
                siblings = f'; next to it are {others}' if others else ''
                guess = closest(name, set(node) - {name}) or closest(name, allowed)
                raise LaunchError(f'{path}.{name}: there is no such option{guess or siblings}')

    def _kind_of(self, node: Mapping[str, Any], path: str) -> Callable[..., Any] | None:
        """The class that a dict is built as; None for a dict without type, or of an unknown one."""
        kind = node.get('type')
        loop = LOOP_TYPES.get(path)
        if kind is None and loop is not None:
            kind = loop[node.get('by_epoch', True)] if isinstance(loop, dict) else loop
        if kind is None and path == 'optim_wrapper':
            kind = 'OptimWrapper'
        if kind is None and path == 'log_processor':
            kind = 'LogProcessor'
        return find_type(kind, self.scope, _registries(path)) if kind is not None else None

    def _allowed(
        self, node: Mapping[str, Any], path: str, kind: Callable[..., Any] | None, owner: Kinds | None
    ) -> set[str] | None:
        """Names that a dict may have; None if that cannot be told."""
        if path in PLAIN_DICTS:
            return PLAIN_DICTS[path]
        if path.endswith('_dataloader'):
            return DATALOADER
        if path == 'optim_wrapper.paramwise_cfg':
            return set(names_mentioned(owner)) if owner else None
        if _last_name(path) == 'nms':
            return _arguments(getattr(ops, str(node.get('type', 'nms')), ops.nms)) | set(NMS_WRAPPER)
        if 'type' not in node and kind is None:
            return self._names_of_plain_dict(path, owner)
        names = self._names_of_type(node, path, kind)
        if names is None or not all(map(is_known_code, owner or [])):
            return None
        return names | set(POPPED) | set(names_taken(owner or []))

    def _names_of_type(self, node: Mapping[str, Any], path: str, kind: Callable[..., Any] | None) -> set[str] | None:
        if kind is None:
            return None
        names = argument_names(kind)
        inner = find_type(node.get('model_type'), self.scope, [MODELS])
        if inner is not None:  # FitToBackbone passes the rest on
            inner_names = argument_names(inner)
            names = None if inner_names is None else inner_names | {'model_type', 'backbone'}
        if names is None:
            return None
        extra = {
            'train_cfg': {'by_epoch'},
            'val_cfg': {'fp16'},
            'test_cfg': {'fp16'},
            'optim_wrapper': {'optimizer', 'constructor', 'paramwise_cfg'},
        }.get(path, set())
        if 'init_cfg' in path:
            extra = {'override', 'name'}
        if path.startswith('param_scheduler'):
            extra = {'convert_to_iter_based'}
        return set(names) | extra

    def _names_of_plain_dict(self, path: str, owner: Kinds | None) -> set[str] | None:
        """Names for a dict without type: read by the classes of the model, or by the class that gets it."""
        kinds = self.model_kinds if path.startswith('model.') else owner or []
        if not kinds or not all(map(is_known_code, kinds)):
            return None
        if not any(part in PICKED for part in path.split('.')):
            return set(names_mentioned(kinds))
        names = names_read(kinds) | set(UNREAD)
        return set(names) if _last_name(path) in PICKED_PARTS else set(names | names_mentioned(kinds))

    def _types_within(self, node: Any) -> Iterator[Callable[..., Any] | None]:
        """Classes of all dicts with a type."""
        if isinstance(node, Mapping):
            for key in ('type', 'model_type'):
                if key in node:
                    yield find_type(node[key], self.scope)
            node = list(node.values())
        if isinstance(node, list | tuple):
            for child in node:
                yield from self._types_within(child)


def _registries(path: str) -> Iterable[Registry]:
    if 'init_cfg' in path:
        return (WEIGHT_INITIALIZERS,)
    if path == 'optim_wrapper':
        return (OPTIM_WRAPPERS,)
    if path.startswith('model'):
        return (MODELS, TASK_UTILS, *REGISTRIES)
    return REGISTRIES


def _last_name(path: str) -> str:
    return next((part for part in reversed(path.split('.')) if not part.isdigit()), path)
