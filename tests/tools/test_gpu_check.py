"""tools/gpu_check.py without a GPU: processes, limits, budget, file, table; checks that find what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from running import ROOT, run_command_line

from addp_backbone.layers.attention import attend
from tools.gpu import harness, kernels, wheels
from tools.gpu.checks import CHECKS, OPENMMLAB, ORDER
from tools.gpu.reference import attention_by_definition
from tools.gpu.report import Report

CPU = torch.device('cpu')
CHECK = replace(CHECKS[9], cpu_seconds=1)


def write_script(folder: Path, text: str) -> Path:
    """A stand-in for the command's process; ``report`` is the path of its file, ``write`` fills it."""
    start = """
        import json, subprocess, sys, time
        report = sys.argv[sys.argv.index('--report') + 1]
        def write(**content): open(report, 'w').write(json.dumps(content))
    """
    path = folder / 'script.py'
    path.write_text(textwrap.dedent(start) + textwrap.dedent(text), encoding='utf-8')
    return path


def test_the_list_has_the_eighteen_checks_and_an_order_for_all_of_them() -> None:
    assert sorted(CHECKS) == list(range(18)) == sorted(ORDER)
    assert ORDER[:5] == (0, 1, 2, 3, 4), 'the kernels first'
    assert sum(check.seconds for check in CHECKS.values()) < 14 * 60


def test_a_check_runs_in_a_process_and_leaves_a_table_and_a_file(tmp_path: Path) -> None:
    out = tmp_path / 'out.json'
    command = [sys.executable, ROOT / 'tools' / 'gpu_check.py', '--device', 'cpu', '--only', '9', '--out', out]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'no GPU is used' in done.stdout and '1 pass' in done.stdout
    content = json.loads(out.read_text(encoding='utf-8'))
    (row,) = content['checks']
    assert (row['number'], row['state'], row['failures']) == (9, 'pass', [])
    assert content['machine']['torch'] == torch.__version__ and '--only 9' in content['command']


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so_and_ends_with_a_code_of_its_own() -> None:
    with pytest.raises(ValueError, match='sees no GPU') as caught:
        run_command_line('gpu_check')
    assert getattr(caught.value, 'exit_code') == 3  # noqa: B009  (of a module that is loaded by path)


def test_a_failure_is_told_and_other_findings_stay(tmp_path: Path) -> None:
    script = write_script(tmp_path, "write(failures=['7 is not 8'], values={'a': 1}, lines=['a: 1 ms'])")
    row = harness.run_check(CHECK, 'cpu', 100, script)
    assert (row['state'], row['reason'], row['values'], row['lines']) == ('FAIL', '7 is not 8', {'a': 1}, ['a: 1 ms'])


def test_a_crash_is_told_with_its_last_line(tmp_path: Path) -> None:
    row = harness.run_check(CHECK, 'cpu', 100, write_script(tmp_path, "raise RuntimeError('CUDA error')"))
    assert (row['state'], row['reason']) == ('crashed', 'RuntimeError: CUDA error')


def test_a_check_over_its_limit_is_killed_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, 'LEAST_LIMIT_S', dict(cpu=2))
    monkeypatch.setattr(harness, 'LIMIT_FACTOR', 1)
    alive = tmp_path / 'alive'
    child = f'import time; time.sleep(3); open({str(alive)!r}, "w")'
    text = f"""
        write(values=dict(a=1))
        subprocess.Popen([sys.executable, '-c', {child!r}])
        time.sleep(60)
    """
    row = harness.run_check(CHECK, 'cpu', 100, write_script(tmp_path, text))
    assert row['state'] == 'too slow' and row['values'] == {'a': 1} and row['seconds'] < 30
    time.sleep(3)
    assert not alive.exists()


def test_an_interrupted_check_does_not_go_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen] = []
    wait = subprocess.Popen.wait

    def interrupted(process: subprocess.Popen, timeout: float | None = None) -> int:
        if timeout is None:
            return wait(process)
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, 'wait', interrupted)
    with pytest.raises(KeyboardInterrupt):
        harness.run_check(CHECK, 'cpu', 100, write_script(tmp_path, 'time.sleep(60)'))
    assert started[0].returncode == -9


def test_a_file_that_cannot_be_written_is_known_before_the_first_check(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    ran = tmp_path / 'ran'
    script = write_script(tmp_path, f'open({str(ran)!r}, "w")')
    with pytest.raises(OSError, match='file'):
        harness.run_checks([9], 'cpu', 100, tmp_path / 'file' / 'out.json', ['tools/gpu_check.py'], script)
    assert not ran.exists()


def test_a_check_that_the_budget_cuts_is_no_failure(tmp_path: Path) -> None:
    row = harness.run_check(CHECK, 'cpu', 1, write_script(tmp_path, 'time.sleep(60)'))
    assert row['state'] == 'not run' and 'budget' in row['reason']


def test_a_check_without_its_packages_is_skipped_by_name(tmp_path: Path) -> None:
    row = harness.run_check(replace(CHECK, packages=('torch', 'no_such_package')), 'cpu', 100, tmp_path / 'none')
    assert (row['state'], row['reason']) == ('skipped', 'no_such_package is not installed (make gpu-wheels)')


def test_checks_come_in_the_order_of_their_worth_until_the_budget_is_spent(tmp_path: Path) -> None:
    script = write_script(tmp_path, 'write(figure="x"); time.sleep(0.1)')
    out = tmp_path / 'out.json'
    rows = harness.run_checks([9, 1, 0, 13], 'cpu', 8, out, ['tools/gpu_check.py'], script)
    states = {row['number']: row['state'] for row in rows}
    assert (
        states[0] == 'pass'
        and list(states) == sorted(states)
        and json.loads(out.read_text())['checks'][0]['figure'] == 'x'
    )
    rows = harness.run_checks([9, 1], 'cpu', 0.1, out, ['tools/gpu_check.py'], script)
    assert [row['state'] for row in rows] == ['not run', 'not run'] and 'budget' in rows[0]['reason']


def test_the_table_has_a_line_a_check_and_counts_states() -> None:
    row = dict(number=3, check='memory', state='FAIL', reason='too much', figure='', seconds=1.25)
    lines = harness.table([row, dict(row, number=4, state='pass', reason='', figure='5 ms')]).splitlines()
    assert 'FAIL' in lines[0] and lines[0].endswith('too much') and lines[1].endswith('5 ms')
    assert lines[2] == '1 FAIL, 1 pass'


def test_a_report_keeps_numbers_that_json_cannot_hold(tmp_path: Path) -> None:
    report = Report(tmp_path / 'report.json')
    report.at_most('error', float('nan'), 1e-3)
    found = json.loads((tmp_path / 'report.json').read_text())
    assert found['values'] == {'error': 'nan'} and len(found['failures']) == 1


@pytest.mark.parametrize(('grid', 'window'), [((5, 7), 3), ((4, 6), 0)])
def test_the_reference_is_attention_as_attend_computes_it_in_float64(grid: tuple[int, int], window: int) -> None:
    leaves, weight = kernels._inputs(*grid, window, torch.float64)
    results = [kernels._with_gradients(f, leaves, weight, grid, window) for f in (attend, attention_by_definition)]
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize('number', [1, 3, 6, 7, 8, 10, 13])
def test_the_small_version_of_a_check_holds_on_a_cpu(number: int) -> None:
    module, _, name = CHECKS[number].function.partition(':')
    report = Report()
    getattr(__import__(f'tools.gpu.{module}', fromlist=[name]), name)(CPU, report)
    assert report.failures == [] and report.figure and report.values


def test_the_check_of_attention_finds_a_gradient_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, 'GRIDS', ((4, 5, 3),))
    report = Report()
    kernels.values_and_gradients(CPU, report)
    assert report.failures == []
    monkeypatch.setattr(kernels, 'attend', lambda q, k, v, **rest: attend(q, k * 1.001, v, **rest))
    kernels.values_and_gradients(CPU, report)
    assert any('RELATIVE_BLOCKS 4 x 5 window 3 fp32' in failure for failure in report.failures)


def test_kernels_and_generation_can_be_imported_without_openmmlab() -> None:
    text = f"""
        import sys; sys.path.insert(0, {str(ROOT)!r})
        import importlib.util
        from tools.gpu import light_imports
        find_spec, importlib.util.find_spec = importlib.util.find_spec, lambda name: None  # as on a bare machine
        light_imports.import_lightly()
        importlib.util.find_spec = find_spec
        assert light_imports.missing_packages(('mmengine', 'torch')) == ['mmengine']
        import tools.gpu.kernels, tools.gpu.networks, tools.gpu.syncs, tools.gpu.compiled
        import pretrain.generation.trajectory, pretrain.training.tokenizer_objective
        assert sys.modules['mmengine'].__spec__ is None, 'the stand-in'
        print(sorted(set({OPENMMLAB!r}) & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(text)], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "['mmengine']", done.stderr


def test_wheels_are_those_of_the_pins_for_a_python_version() -> None:
    names = (*wheels.DOWNLOADED, *wheels.BUILT)
    old, new = (dict(pin.split('==') for pin in wheels.pinned(names, version)) for version in ('3.10', '3.13'))
    assert 'tomli' in old and 'tomli' not in new and set(old) - {'tomli'} == set(new)
    assert Version(old['platformdirs']) < Version(new['platformdirs'])
    with pytest.raises(ValueError, match='has no version of nonsense'):
        wheels.pinned(['nonsense'], '3.11')
