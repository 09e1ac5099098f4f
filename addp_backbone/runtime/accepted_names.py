"""Which option names a registered class takes: its signature, and the names that its module's source reads.

Configs have dicts without ``type`` (``model.test_cfg.rcnn``), for which no signature exists: code reads what it knows
from them and ignores the rest. The names that are read are found in the source of the classes that get the dict.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    EVALUATOR,
    FUNCTIONS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    MODEL_WRAPPERS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TASK_UTILS,
    TRANSFORMS,
    VISBACKENDS,
    VISUALIZERS,
    WEIGHT_INITIALIZERS,
    Registry,
)
from mmengine.runner import Runner

REGISTRIES = (
    MODELS,
    TASK_UTILS,
    DATASETS,
    TRANSFORMS,
    DATA_SAMPLERS,
    HOOKS,
    METRICS,
    EVALUATOR,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    PARAM_SCHEDULERS,
    LOOPS,
    VISUALIZERS,
    VISBACKENDS,
    LOG_PROCESSORS,
    MODEL_WRAPPERS,
    FUNCTIONS,
    WEIGHT_INITIALIZERS,
)
PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'addp_backbone', 'pretrain')  # whose sources tell what they read
OTHER_PACKAGES = ('torch', 'timm', 'builtins', 'abc', 'typing')  # which read no dicts of a config
DICT_WORDS = ('cfg', 'options', 'prefix')  # of variables that hold a dict of a config
DICT_METHODS = ('get', 'pop', 'setdefault')


def find_type(kind: Any, scope: str, registries: Iterable[Registry] = REGISTRIES) -> Callable[..., Any] | None:
    """Looks up a config's ``type``.

    Args:
        kind: A registered name, with or without a scope in front, a dotted path, or the class itself.
        scope: The config's ``default_scope``.
        registries: Where to look, in this order.

    Returns:
        The class or function; None if no registry has it.
    """
    if not isinstance(kind, str):
        return kind if callable(kind) else None
    for registry in registries:
        try:
            found = registry.children.get(scope, registry).get(kind)
        except (ImportError, AttributeError, KeyError, ValueError):
            continue
        if found is not None:
            return found
    return None


@functools.cache
def argument_names(kind: Callable[..., Any]) -> frozenset[str] | None:
    """Names of a class's or function's arguments, with those of the base classes that it passes ``**kwargs`` to.

    Returns:
        The names; None if any name may be accepted.
    """
    bases = [base for base in kind.__mro__ if '__init__' in vars(base)] if inspect.isclass(kind) else []
    functions = [vars(base)['__init__'] for base in bases if base is not object] if inspect.isclass(kind) else [kind]
    names: set[str] = set()
    closed = False  # whether somebody refuses what he does not know
    for index, function in enumerate(functions):
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return None
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        closed |= not any(p.kind is p.VAR_KEYWORD for p in parameters)
        if closed and index == 0:
            break  # what the bases take does not get through
    if any(base is CheckpointHook for base in bases):
        names |= argument_names(Runner.save_checkpoint) or frozenset()  # gets the hook's **kwargs
        closed = True
    return frozenset(names - {'self'}) if closed or not functions else None


def is_known_code(kind: Callable[..., Any]) -> bool:
    """Whether all code of a class is in :data:`PACKAGES`, so that what it reads from dicts can be found."""
    bases = kind.__mro__ if inspect.isclass(kind) else [kind]
    return all(base.__module__.split('.')[0] in (*PACKAGES, *OTHER_PACKAGES) for base in bases)


def names_read(kinds: Iterable[Callable[..., Any]]) -> frozenset[str]:
    """Names that the sources of some classes read from dicts of a config (``self.test_cfg.rcnn.score_thr``)."""
    return frozenset[str]().union(*(_names_read(module) for module in _modules(kinds)))


def names_mentioned(kinds: Iterable[Callable[..., Any]]) -> frozenset[str]:
    """All identifiers in the sources of some classes: what may become an argument of something that they build."""
    near = _modules(kinds)
    all_modules = near.union(*(_imported_modules(name) for name in near))
    return frozenset[str]().union(*(_names_mentioned(module) for module in all_modules))


def names_taken(kinds: Iterable[Callable[..., Any]]) -> frozenset[str]:
    """Names that some classes take out of a dict before they build something from it."""
    bases = {base for kind in kinds for base in (kind.__mro__ if inspect.isclass(kind) else [kind])}
    modules = {base.__module__ for base in bases if base.__module__.split('.')[0] in PACKAGES}
    return frozenset[str]().union(*(_names_taken(module) for module in modules))


def _modules(kinds: Iterable[Callable[..., Any]]) -> set[str]:
    """Modules of classes, of their bases, and of the classes and functions that these modules import."""
    bases = {base for kind in kinds for base in (kind.__mro__ if inspect.isclass(kind) else [kind])}
    own = {base.__module__ for base in bases if base.__module__.split('.')[0] in PACKAGES}
    return own.union(*(_imported_modules(name) for name in own))


@functools.cache
def _imported_modules(name: str) -> frozenset[str]:
    modules = (getattr(value, '__module__', None) for value in vars(_module(name)).values() if callable(value))
    return frozenset(m for m in modules if isinstance(m, str) and m.split('.')[0] in PACKAGES and m != 'builtins')


def _module(name: str) -> ModuleType:
    return sys.modules.get(name) or importlib.import_module(name)


@functools.cache
def _tree(name: str) -> ast.Module:
    try:
        return ast.parse(inspect.getsource(_module(name)))
    except (OSError, TypeError, ImportError):
        return ast.Module([], [])


@functools.cache
def _names_mentioned(name: str) -> frozenset[str]:
    names = set()
    for node in ast.walk(_tree(name)):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word) | ast.Constant(value=str(word)):
                names.add(word)
            case ast.keyword(arg=str(word)):
                names.add(word)
    return frozenset(names)


@functools.cache
def _names_taken(name: str) -> frozenset[str]:
    names = set()
    for node in ast.walk(_tree(name)):
        match node:
            case ast.Call(func=ast.Attribute(attr='pop' | 'get'), args=[ast.Constant(value=str(word)), *_]):
                names.add(word)
    return frozenset(names)


@functools.cache
def _names_read(name: str) -> frozenset[str]:
    names = set()
    for node in ast.walk(_tree(name)):
        match node:
            case ast.Attribute(value=owner, attr=word) if _is_config_dict(owner) and word not in DICT_METHODS:
                names.add(word)
            case ast.Subscript(value=owner, slice=ast.Constant(value=str(word))) if _is_config_dict(owner):
                names.add(word)
            case ast.Call(func=ast.Attribute(value=owner, attr=method), args=[ast.Constant(value=str(word)), *_]) if (
                method in DICT_METHODS and _is_config_dict(owner)
            ):
                names.add(word)
            case ast.Call(func=ast.Name(id='hasattr' | 'getattr'), args=[owner, ast.Constant(value=str(word)), *_]) if (
                _is_config_dict(owner)
            ):
                names.add(word)
            case ast.Compare(left=ast.Constant(value=str(word)), ops=[ast.In() | ast.NotIn()], comparators=[owner]) if (
                _is_config_dict(owner)
            ):
                names.add(word)
            case ast.Call(keywords=keywords):  # test_cfg=dict(score_thr=0.05), a default
                names |= _default_names(keywords)
    return frozenset(names)


def _default_names(keywords: list[ast.keyword]) -> set[str]:
    dicts = [k.value for k in keywords if k.arg and any(word in k.arg for word in DICT_WORDS)]
    return {k.arg for value in dicts if isinstance(value, ast.Call) for k in value.keywords if k.arg}


def _is_config_dict(node: ast.expr) -> bool:
    """Whether an expression is a variable named as a config's dict, or something within one."""
    match node:
        case ast.Name(id=word):
            return any(part in word for part in DICT_WORDS)
        case ast.Attribute(value=owner, attr=word):
            return any(part in word for part in DICT_WORDS) or _is_config_dict(owner)
        case ast.Subscript(value=owner):
            return _is_config_dict(owner)
        case ast.Call(func=ast.Attribute(value=owner, attr='get')):
            return _is_config_dict(owner)
    return False
