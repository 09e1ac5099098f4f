"""The count of a walk through files: what roads.py prints."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from roads import count, walk


def test_only_a_step_back_into_a_file_that_was_left_is_a_return():
    assert count(['a', 'b', 'b', 'a', 'c', 'b']) == (['a', 'b', 'c'], 2)


def test_a_function_counts_once_and_only_if_it_is_the_projects():
    from addp_backbone.networks.arch import get_arch

    def run():
        [get_arch('tiny') for _ in range(3)]
        sorted([1])

    assert walk(run) == ['addp_backbone/networks/arch.py']
