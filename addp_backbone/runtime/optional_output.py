"""Output that a run can do without: pictures, TensorBoard and other curves. Where it fails, a warning says so once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.visualization import Visualizer

_BACKEND_METHODS = ('add_config', 'add_graph', 'add_image', 'add_scalar', 'add_scalars', 'close')
_LIBRARIES_HOOKS = ('DetVisualizationHook', 'SegVisualizationHook')  # mmdet's and mmseg's that only draw
_HOOK_METHODS = ('before_train', 'after_train_iter', 'after_val_iter', 'after_test_iter')


def tolerate_visualizer(visualizer: Visualizer) -> Visualizer:
    """Lets every backend of a visualizer (files, TensorBoard, others) fail without ending the run; returns it."""
    for name, backend in visualizer._vis_backends.items():
        for method in _BACKEND_METHODS:
            _tolerate(backend, method, f'output to {name}')
    return visualizer


def tolerate_hook(hook: Hook) -> None:
    """The same for a hook that only draws, which its class says by ``optional_output = True``; leaves others alone."""
    if getattr(hook, 'optional_output', False) or type(hook).__name__ in _LIBRARIES_HOOKS:
        for method in _HOOK_METHODS:
            _tolerate(hook, method, f'a picture of {type(hook).__name__}')


def _tolerate(owner: Any, method: str, what: str) -> None:
    function = getattr(owner, method, None)
    if function is not None and not isinstance(function, _Tolerated):
        setattr(owner, method, _Tolerated(function, what))


class _Tolerated:
    """A function whose errors become warnings, each kind once."""

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self.function, self.what = function, what
        self._known: set[type[Exception]] = set()
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **options: Any) -> Any:
        try:
            return self.function(*args, **options)
        except Exception as error:  # whatever it is, the numbers of the run do not depend on it
            if type(error) not in self._known:
                self._known.add(type(error))
                print_log(
                    f'{self.what} failed ({type(error).__name__}: {error}); the run goes on without it, and this is '
                    'said once',
                    logger='current',
                    level=logging.WARNING,
                )
            return None
