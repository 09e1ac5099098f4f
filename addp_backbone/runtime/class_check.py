"""Compares class names of data sets, heads and checkpoints before anything is trained or evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from addp_backbone.runtime.config_checks import LaunchError


class ClassesError(LaunchError):
    """Data sets, heads and checkpoint do not have the same classes; the message has both lists."""


@HOOKS.register_module()
class CheckClasses(Hook):
    """Refuses to train or evaluate where class names or numbers of classes differ, each of which gives wrong labels.

    Compared are the classes of training and validation data, ``num_classes`` of every head, and, where a checkpoint is
    tested or resumed, the classes it was trained with. Weights to start from (``load_from`` in training) may have
    others.

    Raises:
        ClassesError: If they differ.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Compares data sets and heads."""
        classes = _classes(runner.train_dataloader)
        if runner.val_loop is not None:
            compare_classes('the training data', classes, 'the validation data', _classes(runner.val_dataloader))
        check_heads(runner.model, classes)

    def before_val(self, runner: Runner) -> None:
        """Compares data set and heads."""
        check_heads(runner.model, _classes(runner.val_dataloader))

    def before_test(self, runner: Runner) -> None:
        """Compares data set and heads."""
        check_heads(runner.model, _classes(runner.test_dataloader))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compares the classes that a checkpoint was trained with, if it is tested or resumed."""
        trained = _names((checkpoint.get('meta') or {}).get('dataset_meta'))
        testing = runner._train_loop is None or isinstance(runner._train_loop, dict)
        if testing and not isinstance(runner._test_loop, (dict, type(None))):
            compare_classes('the checkpoint', trained, 'the data', _classes(runner.test_dataloader))
        elif runner._resume and not isinstance(runner._train_loop, (dict, type(None))):
            compare_classes('the checkpoint', trained, 'the training data', _classes(runner.train_dataloader))


def compare_classes(one: str, ours: Sequence[str] | None, other: str, theirs: Sequence[str] | None) -> None:
    """Raises :class:`ClassesError` if names or their order differ; unknown classes (None) are not compared."""
    if ours is None or theirs is None or list(ours) == list(theirs):
        return
    same = set(ours) == set(theirs)
    raise ClassesError(
        f'the classes of {one} and of {other} differ{" in their order, which numbers them" if same else ""}: '
        f'{_shown(ours)} and {_shown(theirs)}. Give both the same list (metainfo.classes)'
    )


def check_heads(model: nn.Module, classes: Sequence[str] | None) -> None:
    """Raises :class:`ClassesError` if a head of a detector or segmentor has another number of classes than the data."""
    if classes is None:
        return
    inner = model.module if is_model_wrapper(model) else model
    assert isinstance(inner, nn.Module)
    wrong = [
        f'{name}.num_classes is {module.num_classes}'
        for name, module in inner.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and name.rsplit('.', 1)[-1] != 'rpn_head'  # object or not
        and ('head' in name)
        and module.num_classes != len(classes)
    ]
    if wrong:
        raise ClassesError(
            f'the data have {len(classes)} classes ({_shown(classes)}), but {", ".join(wrong)}. Set num_classes of '
            'every head to the number of classes, or metainfo.classes of the data sets to those of the heads'
        )


def _classes(dataloader: Any) -> list[str] | None:
    return _names(getattr(dataloader.dataset, 'metainfo', None))


def _names(metainfo: Any) -> list[str] | None:
    classes = (metainfo or {}).get('classes')
    return list(classes) if isinstance(classes, (list, tuple)) else None


def _shown(names: Sequence[str], limit: int = 12) -> str:
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return f'{", ".join(map(str, names[:limit]))}{more}'
