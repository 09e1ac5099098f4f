"""Strings from outside in configs: they come back as they were, whatever they look like."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from addp_backbone.files.config_text import LiteralConfig, docstring_text, python_literal

HOSTILE = [
    '{{$HOME:x}}',
    '{{\'$HOME:__import__("os").system("touch ran")\'}}',
    '{{ fileDirname }}',
    '{{ _base_.model }}',
    '{{{$HOME:x}}}',
    '\\{{$HOME:x}}',
    "quo'te",
    'both\'"""',
    'new\nline',
    'Straße\u0308 \u2028',
    '\ud800',
]
# Pieces of templates, so that random strings often come near one.
STRINGS = st.lists(
    st.sampled_from(
        ['{', '{{', '}', '}}', '$HOME', ':', ' ', '\\', "'", '"', '\n', 'x', '_base_.a', 'fileDirname', 'ä']
    )
).map(''.join)


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_string_survives_writing_loading_dumping_and_loading_again(name: str, tmp_path: Path) -> None:
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f'"""Of {docstring_text(name)}."""\nclasses = {python_literal([name, "b"])}\n', encoding='utf-8')
    config = LiteralConfig.of(Config.fromfile(leaf))
    assert config.classes == [name, 'b']
    assert ast.get_docstring(ast.parse(leaf.read_text()), clean=False) == f'Of {name}.'
    if name == '\ud800':
        return  # cannot be encoded in the UTF-8 file that mmengine writes
    config.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').classes == [name, 'b']


@given(st.lists(STRINGS, max_size=3))
@settings(max_examples=100, deadline=None)
def test_no_literal_has_two_braces_in_a_row_and_each_evaluates_to_itself(value: list[str]) -> None:
    text = python_literal(value)
    assert '{' not in text and '}' not in text and text.isascii()
    assert ast.literal_eval(text) == value
    assert ast.literal_eval(f'"""{docstring_text("".join(value))}"""') == ''.join(value)


def test_other_types_than_plain_data_are_refused() -> None:
    with pytest.raises(TypeError, match='is a dict'):
        python_literal({'a': 1})
