"""``--cfg-options``: blanks and commas of a path stay, and all that mmengine reads is read alike."""

from __future__ import annotations

import argparse
import random

import pytest
from mmengine.config import DictAction

from addp_backbone.runtime.option_parsing import ConfigOptions, config_option, parse_options, parse_value


@pytest.mark.parametrize(
    'text',
    [
        *('1', '1.5', '1e-4', '-1', 'True', 'false', 'None', 'abc', 'a=b', '', "'a'", '"5"', '"[1,2]"'),
        *('1,2,3', 'a,b', 'a,', '[]', '()', '[a]', '(3,)', '[1,2]', '(1, 2)', "['a','b']", "'a','b'"),
        *('[(1, 2), [a, b], c]', '[(a,b),(c,d)]', '[1,[2,(3,4)]]', '/data/a.pth', '/data/a (1).pth'.replace(' ', '')),
    ],
)
def test_what_mmengine_reads_is_read_alike(text: str) -> None:
    assert parse_value(text) == DictAction._parse_iterable(text)
    assert type(parse_value(text)) is type(DictAction._parse_iterable(text))


def test_blanks_within_values_stay_which_mmengine_removes() -> None:
    assert DictAction._parse_iterable('/my data/x') == '/mydata/x'
    assert parse_value('/my data/x') == '/my data/x'
    assert parse_value("['traffic light', stop sign]") == ['traffic light', 'stop sign']
    assert parse_value("driver's seat, x") == ["driver's seat", 'x']


def test_any_path_comes_through_an_option_as_it_is_or_is_refused() -> None:
    rng, refused = random.Random(0), 0
    for _ in range(3000):
        path = '/' + ''.join(rng.choice('ab ,\'"()[]/=') for _ in range(rng.randint(1, 9))).strip()
        try:
            word = config_option('a.b', path)
        except ValueError:
            refused += 1
            continue
        assert parse_options([word]) == {'a.b': path}
    assert refused < 30  # both kinds of quotes and a bracket or comma
    assert config_option('a.b', '/data/my cars (1)') == 'a.b=/data/my cars (1)'


@pytest.mark.parametrize('word', ['lr', '=1', 'a=[1,(2]', 'a=1,)'])
def test_what_cannot_be_read_is_an_error_of_usage(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)
    with pytest.raises(SystemExit, match='2'):
        parser.parse_args(['--cfg-options', word])
    assert word in capsys.readouterr().err
