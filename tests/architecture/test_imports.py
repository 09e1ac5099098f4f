"""The house's rules: imports point one way, between packages and between rooms, and few levels deep."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from imports import (
    PACKAGES,
    find_circle,
    import_graph,
    longest_chain,
    python_files,
    room_graph,
    rooms,
)

# A package may import from those that stand before it.
ORDER = ('addp_backbone', 'pretrain', 'experiments', 'tools')
MAX_LEVELS = 9
MAX_ROOMS = {'addp_backbone': 11, 'pretrain': 9}


@pytest.fixture(scope='module')
def graph() -> dict[str, set[str]]:
    return import_graph()


def test_imports_between_packages_point_one_way(graph):
    rank = {package: number for number, package in enumerate(ORDER)}
    backwards = [
        f'{module} imports {target}'
        for module, targets in graph.items()
        for target in targets
        if rank[target.partition('.')[0]] > rank[module.partition('.')[0]]
    ]
    assert not backwards


def test_no_module_takes_part_in_a_circle(graph):
    assert find_circle(graph) == []


def test_no_room_takes_part_in_a_circle(graph):
    assert find_circle(room_graph(graph)) == []


def test_the_longest_chain_of_imports_has_few_levels(graph):
    chain = longest_chain(graph)
    assert len(chain) <= MAX_LEVELS, ' -> '.join(chain)


@pytest.mark.parametrize('package', MAX_ROOMS)
def test_a_package_shows_few_rooms(package):
    assert len(rooms(package)) <= MAX_ROOMS[package], rooms(package)


def test_every_package_and_the_deepest_room_are_seen():
    files = python_files()
    assert {name.partition('.')[0] for name in files} == set(PACKAGES)
    assert 'addp_backbone.datasets.shapes.textures' in files


def test_a_circle_and_an_import_within_a_function_are_found(tmp_path):
    folder = tmp_path / 'pretrain'
    folder.mkdir()
    for name in ('addp_backbone', 'experiments', 'tools'):
        (tmp_path / name).mkdir()
    (folder / 'one.py').write_text('from pretrain import two\n', encoding='utf-8')
    (folder / 'two.py').write_text('def f():\n    from pretrain.one import g\n    return g\n', encoding='utf-8')
    assert find_circle(import_graph(tmp_path)) == ['pretrain.one', 'pretrain.two', 'pretrain.one']


def test_an_import_for_type_checking_alone_is_none(tmp_path):
    for name in PACKAGES:
        (tmp_path / name).mkdir()
    text = 'from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pretrain.b import B\n'
    (tmp_path / 'pretrain' / 'a.py').write_text(text, encoding='utf-8')
    (tmp_path / 'pretrain' / 'b.py').write_text('from pretrain import a\n', encoding='utf-8')
    assert import_graph(tmp_path) == {'pretrain.a': set(), 'pretrain.b': {'pretrain.a'}}
