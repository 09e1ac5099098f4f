"""The gate: every value of a config is what docs/reference_values.json says, beside the source's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from running import load_tool

from experiments.reference_values import DATA_FILE, NOT_SET, PAGE, check, insert, load, look_up, render

SOURCES, TABLES = load()


@pytest.mark.parametrize('table', TABLES, ids=lambda table: table.title)
def test_no_value_has_drifted(table):
    drifted = [f'{f.row.key}: {f.today}, recorded {f.row.value}' for f in check([table]) if f.has_drifted]
    assert not drifted, 'if intended, change docs/reference_values.json, then: python tools/reference.py --write'


def test_the_page_shows_the_tables_as_they_are():
    page = PAGE.read_text(encoding='utf-8')
    assert insert(page, render(SOURCES, TABLES)) == page, 'python tools/reference.py --write'


def test_all_stages_are_covered_and_no_value_is_listed_twice():
    stages = {table.title.partition(':')[0] for table in TABLES}
    assert {'Detection', 'Segmentation', 'Classification', 'Pre-training'} <= stages
    assert sum(len(table.rows) for table in TABLES) >= 150
    for table in TABLES:
        keys = [row.key for row in table.rows]
        assert len(set(keys)) == len(keys), table.title


@pytest.mark.parametrize(
    'key, value',
    [
        ('a.b', 3),
        ('a.tuple', [1, 2]),
        ('a.none', NOT_SET),
        ('a.nothing.deeper', NOT_SET),
        ('steps[Two].size', 5),
        ('steps[Three].size', NOT_SET),
        ('steps.0.size', 4),
        ('steps.*.size', [4, 5]),
        ('code:addp_backbone.networks.arch:PRESETS.base.global_attn_indices', [2, 5, 8, 11]),
        ('default:experiments.reference_values:check.root', check.__defaults__[0]),
    ],
)
def test_a_key_finds_its_value(key, value):
    steps = [dict(type='One', size=4), dict(type='Two', size=5)]
    assert look_up(key, Config(dict(a=dict(b=3, tuple=(1, 2), none=None), steps=steps))) == value


@pytest.mark.parametrize(
    'key',
    [
        'code:json.no_such_module:X',
        'code:json:no_such_name',
        'default:json:dumps.no_such',
        'else:json:dumps',
        'code:json',
    ],
)
def test_a_name_that_the_code_no_longer_has_is_an_error(key):
    with pytest.raises(ValueError, match=r'no longer in the code|wanted a path'):
        look_up(key, Config({}))


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(theirs=2), 'belong together'),
        (dict(departure='why'), 'belong together'),
        (dict(source='somewhere x.py:1'), 'unknown source'),
        (dict(extra=1), 'a row needs'),
    ],
)
def test_a_row_that_says_too_little_or_too_much_is_refused(tmp_path: Path, change, message):
    data = json.loads(DATA_FILE.read_text(encoding='utf-8'))
    row = next(row for row in data['tables'][0]['rows'] if 'departure' not in row)
    row.update(change)
    (tmp_path / 'values.json').write_text(json.dumps(data), encoding='utf-8')
    with pytest.raises(ValueError, match=message):
        load(tmp_path / 'values.json')


def test_the_tool_names_what_has_drifted_and_leaves_the_page_alone(monkeypatch, capsys):
    tool = load_tool('reference')
    monkeypatch.setattr(tool, 'load', lambda: (SOURCES, TABLES[1:2]))
    monkeypatch.setattr('experiments.reference_values.look_up', lambda key, cfg: 7)
    before = PAGE.read_bytes()
    assert tool.main(['--write']) == 1
    assert 'DRIFTED from 0.8' in capsys.readouterr().out and PAGE.read_bytes() == before


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match='needs the marks'):
        insert('# A page\n', 'text')
