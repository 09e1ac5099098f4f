"""Classes of data, heads and checkpoint are compared before a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from addp_backbone.runtime.class_check import CheckClasses, ClassesError, check_heads, compare_classes


class Head(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes


def detector(box: int, mask: int) -> nn.Module:
    return nn.ModuleDict(
        dict(
            rpn_head=Head(1),
            roi_head=nn.ModuleDict(dict(bbox_head=nn.ModuleList([Head(box), Head(box)]), mask_head=Head(mask))),
        )
    )


@pytest.mark.parametrize(('box', 'mask', 'named'), [(2, 3, 'mask_head'), (80, 2, 'bbox_head.1'), (1, 1, 'bbox_head.0')])
def test_a_head_with_another_number_of_classes_is_named(box: int, mask: int, named: str) -> None:
    with pytest.raises(ClassesError, match=rf'2 classes \(red, blue\), but .*{named}.num_classes'):
        check_heads(detector(box, mask), ['red', 'blue'])


def test_equal_numbers_pass_and_the_rpn_is_left_alone() -> None:
    check_heads(detector(2, 2), ['red', 'blue'])


def test_names_and_their_order_are_compared_and_both_lists_shown() -> None:
    compare_classes('a', ['x', 'y'], 'b', ('x', 'y'))
    compare_classes('a', None, 'b', ['x'])
    with pytest.raises(ClassesError, match=r'differ in their order.*: x, y and y, x'):
        compare_classes('a', ['x', 'y'], 'b', ['y', 'x'])
    with pytest.raises(ClassesError, match='differ: x and z'):
        compare_classes('a', ['x'], 'b', ['z'])


def runner(classes: list[str], *, testing: bool, resuming: bool = False) -> Any:
    """What the hook asks of mmengine's Runner."""
    loader = SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(classes=classes)))
    return SimpleNamespace(
        _train_loop=None if testing else object(),
        _test_loop=object() if testing else None,
        _resume=resuming,
        train_dataloader=loader,
        test_dataloader=loader,
    )


@pytest.mark.parametrize('situation', [dict(testing=True), dict(testing=False, resuming=True)])
def test_a_checkpoint_of_other_classes_is_neither_tested_nor_resumed(situation: dict[str, bool]) -> None:
    checkpoint = dict(meta=dict(dataset_meta=dict(classes=('dog', 'cat'))))
    CheckClasses().after_load_checkpoint(runner(['dog', 'cat'], **situation), checkpoint)
    CheckClasses().after_load_checkpoint(runner(['red', 'blue'], **situation), dict(meta={}))
    with pytest.raises(ClassesError, match=r'the checkpoint and of .*: dog, cat and red, blue'):
        CheckClasses().after_load_checkpoint(runner(['red', 'blue'], **situation), checkpoint)


def test_weights_to_start_from_may_have_other_classes() -> None:
    checkpoint = dict(meta=dict(dataset_meta=dict(classes=('dog', 'cat'))))
    CheckClasses().after_load_checkpoint(runner(['red', 'blue'], testing=False), checkpoint)
