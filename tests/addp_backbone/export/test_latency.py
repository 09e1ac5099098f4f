"""The table of timings: what is called how often, what is written into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_exports import batch, build, samples, write_detector

from addp_backbone.export import latency
from addp_backbone.export.build import plan_export
from addp_backbone.export.latency import Timing, compare_latency, format_table, measure


def test_a_row_has_the_median_and_the_percentiles_in_milliseconds() -> None:
    seconds = tuple(0.001 * number for number in (11, 1, 2, 3, 10, 4, 5, 6, 7, 8, 9))
    assert Timing('x', seconds).row() == ['x', '6.0', '2.0', '10.0']
    assert Timing('x', note='no C++ compiler').row() == ['x', 'no C++ compiler', '', '']


def test_calls_that_warm_up_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def call() -> None:
        calls.append(0)
        clock[0] += 100 if len(calls) <= 2 else len(calls)

    monkeypatch.setattr(latency.time, 'perf_counter', lambda: clock[0])
    assert measure('x', call, 3).seconds == (3, 4, 5)


class File:
    """Stands for the exported file."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def run(self, images: np.ndarray, sizes: list[tuple[int, int]] | None) -> None:
        self.calls.append((images.shape, sizes))


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(write_detector(tmp_path_factory.mktemp('detector')))


@pytest.mark.parametrize('broken', [False, True])
def test_every_way_is_a_row_and_one_that_fails_costs_no_other(
    detector: Any, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError('no')

    monkeypatch.setattr(latency.shutil, 'which', lambda name: '/usr/bin/c++' if broken else None)
    monkeypatch.setattr(torch, 'compile', refuse)
    images, sizes = batch(2, 64, 64)
    file: Any = File()
    timings = compare_latency(detector, plan_export(detector), file, images, samples(sizes, (64, 64)), 2)
    assert [(timing.name, len(timing.seconds)) for timing in timings] == [
        ('torch, backbone and neck', 2),
        ('torch, model.predict', 2),
        ('torch, exported graph', 2),
        ('torch.compile, exported graph', 0),
        ('onnxruntime', 2),
    ]
    assert timings[3].note == ('failed: RuntimeError' if broken else 'no C++ compiler')
    assert file.calls == [((2, 3, 64, 64), sizes)] * 4, 'two calls warm up'


def test_columns_are_aligned() -> None:
    lines = format_table([Timing('a', (0.1, 0.1)), Timing('longer', note='no')]).splitlines()
    assert lines[0].split() == ['median', 'ms', '10', '%', '90', '%'] and len({len(line) for line in lines}) == 1
    assert lines[1].split() == ['a', '100.0', '100.0', '100.0'] and lines[2].split() == ['longer', 'no']


def test_the_commands_arguments_are_checked_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    from small_configs import REPOSITORY

    parse = runpy.run_path(str(Path(REPOSITORY) / 'tools/latency.py'))['parse_args']
    with pytest.raises(SystemExit):
        parse(['config.py', 'work_dir', 'a.jpg', '--repeats', '1'])
    assert '--repeats must be at least 2' in capsys.readouterr().err
