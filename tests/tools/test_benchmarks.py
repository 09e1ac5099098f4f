"""Every row of the models' benchmarks at a tiny size: what it prints, and that both sides compute the same numbers."""

import importlib
import json

import pytest
from running import ROOT

KEYS = {
    'row',
    'ours',
    'peer',
    'unit',
    'ratio',
    'goal',
    'ours_memory_gb',
    'peer_memory_gb',
    'threads',
    'torch',
    'note',
    'difference',
}


@pytest.fixture
def run_rows(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))

    def run(tool, *words):
        importlib.import_module(f'tools.benchmark.{tool}').main(
            [*words, '--smoke', '--json', '--pairs', '1', '--threads', '1']
        )
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for row in rows:
            assert set(row) == KEYS and row['threads'] == 1
            assert row['ours'] > 0 and row['ours_memory_gb'] > 0
            if row['peer'] is not None:
                assert (
                    row['ratio'] == pytest.approx(row['ours'] / row['peer'])
                    and row['peer_memory_gb'] > 0
                    and row['goal']
                )
        return rows

    return run


@pytest.mark.parametrize('pyramid', [(), ('--pyramid',)], ids=['vit', 'pyramid'])
@pytest.mark.parametrize('mode', ['forward', 'train', 'checkpoint', 'bf16'])
def test_the_backbones_row_compares_equal_numbers(run_rows, mode, pyramid):
    (row,) = run_rows('backbone', '--mode', mode, *pyramid)
    assert row['difference'] < (0.05 if mode == 'bf16' else 1e-5)
    assert ('loss off by' in row['note']) == (mode == 'bf16')
    assert ('no pyramid' in row['note']) == bool(pyramid)


def test_the_training_steps_row_compares_equal_numbers(run_rows):
    (row,) = run_rows('addp', '--mode', 'step', '--dropout', '0')
    assert row['difference'] < 1e-5 and row['unit'] == 's/image'


def test_generations_row_compares_equal_images(run_rows):
    (row,) = run_rows('addp', '--mode', 'generate')
    assert row['difference'] < 1e-4


@pytest.mark.parametrize('mode', ['step', 'generate'])
def test_rows_whose_numbers_cannot_agree_print_no_difference(run_rows, mode):
    (row,) = run_rows('addp', '--mode', mode, '--bf16')
    assert row['difference'] is None and row['goal'] == '<= 0.25'


def test_scaling_prints_a_row_for_each_size_and_leaves_out_what_does_not_fit(run_rows):
    rows = run_rows('scaling', '--memory', '0.02')
    assert (
        ['64 px' in row['row'] for row in rows] == [True]
        and rows[0]['peer'] is None
        and 'a megapixel' in rows[0]['note']
    )


def test_a_side_that_fails_says_why(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    pairs = importlib.import_module('tools.benchmark.pairs')
    with pytest.raises(RuntimeError, match=r"(?s)process of 'ours' failed.*TypeError"):
        pairs.measure({'ours': int}, 1, 1)  # int() is no function to call


def test_the_table_has_a_line_for_each_row(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    pairs = importlib.import_module('tools.benchmark.pairs')
    row = pairs.BenchmarkRow('name', 1.0, 2.0, 's', 0.5, '<= 0.6', 1.0, 4.0, 2, 'torch', 'note')
    assert (
        pairs.markdown([row]).splitlines()[2] == '| name | 0.5 | <= 0.6 | 1 | 2 | s | 1.00 / 4.00 = 0.25 | 2 | note |'
    )
