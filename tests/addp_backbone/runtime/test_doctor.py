"""tools/doctor.py and what it calls: each known bad combination is named, with one line that mends it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from addp_backbone.runtime.doctor import find_problems
from addp_backbone.runtime.environment import collect_facts

ROOT = Path(__file__).parents[3]
GOOD: dict[str, Any] = {
    'python': '3.11.7',
    'repository': '/home/ann/addp',
    'project_origin': '/home/ann/addp',
    'finder_installed': True,
    'pins': {'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1'},
    'packages': {
        'onedl-mmengine': '0.10.12',
        'onedl-mmcv': '2.3.6',
        'onedl-mmdetection': '3.5.1',
        'onedl-mmsegmentation': '1.4.2',
        'opencv-python': '4.12.0.88',
        'opencv-python-headless': '4.12.0.88',
        'torch': '2.14.1+cu130',
        'torchvision': '0.29.2',
        'timm': '1.0.31',
        'numpy': '2.2.6',
        'pycocotools': '2.0.11',
        'faster-coco-eval': '1.8.0',
        'fairscale': '0.4.13',
        'safetensors': '0.8.0',
        'einops': '0.8.2',
    },
    'torchvision_requires_torch': '2.14.1',
    'import_errors': {},
    'mmcv_ops': 'torchvision stand-in',
    'ops_error': None,
    'foreign_modules': {},
    'nvidia_driver': None,
    'cuda_available': False,
    'torch_cuda': '13.0',
    'torch_archs': [],
    'gpus': [],
    'shm_gib': 8.0,
}
GPU = {'name': 'Tesla K80', 'capability': '3.7', 'bf16': False, 'memory_gib': 11.0, 'supported': False}


def with_packages(*removed: str, **changed: str) -> dict[str, Any]:
    packages = {**GOOD['packages'], **{name.replace('_', '-'): version for name, version in changed.items()}}
    return {'packages': {name: version for name, version in packages.items() if name not in removed}}


def failing(module: str, message: str) -> dict[str, Any]:
    return {'import_errors': {module: message}}


BAD = {  # facts that differ from the good ones, what the problem says, what the mending line says
    'old python': ({'python': '3.8.10'}, '3.10 is needed', 'PYTHON=python3'),
    'package missing': (with_packages('timm'), 'not installed: timm', 'make setup'),
    'no mmdet': (with_packages('onedl-mmdetection'), 'not installed: onedl-mmdetection', 'make setup'),
    'two mmcv': (with_packages(mmcv='2.2.0'), 'onedl-mmcv and mmcv both', 'pip uninstall -y onedl-mmcv mmcv'),
    'mmcv-lite': (
        with_packages('onedl-mmcv', mmcv_lite='2.1.0'),
        'mmcv-lite has no mmcv.ops',
        'pip uninstall -y mmcv-lite',
    ),
    'two opencv': (with_packages(opencv_python='4.11.0.86'), 'over each other', 'opencv-python-headless>=4.10'),
    'torchvision of another torch': (with_packages(torch='2.10.0'), 'built for torch 2.14.1', 'torch==2.10.0'),
    'mmdet refuses mmcv': (
        with_packages('onedl-mmcv', 'onedl-mmdetection', mmcv='2.2.0', mmdet='3.3.0'),
        'mmcv < 2.2',
        'make setup',
    ),
    'mmcv too old for torch': (with_packages('onedl-mmcv', mmcv='2.1.0'), 'older than torch', 'make setup'),
    'not the tested version': (
        with_packages(onedl_mmdetection='3.4.0'),
        'tested is 3.5.1',
        'pip install "onedl-mmdetection==3.5.1"',
    ),
    'numpy 2, old opencv': (
        with_packages('opencv-python-headless', opencv_python='4.9.0.80'),
        'built for numpy 1',
        '>=4.10',
    ),
    'numpy 2, old pycocotools': (
        with_packages(pycocotools='2.0.7'),
        'pycocotools 2.0.7 was built',
        'pycocotools>=2.0.8',
    ),
    'numpy 1': (with_packages(numpy='1.26.4'), 'needs numpy 2', 'numpy>2'),
    'no libGL': (
        failing('cv2', 'libGL.so.1: cannot open shared object file'),
        'import of cv2 fails',
        'opencv-python-headless',
    ),
    'no pkg_resources': (failing('mmdet.models', "No module named 'pkg_resources'"), 'pkg_resources', 'setuptools<81'),
    'ops of another torch': (
        failing('mmcv.ops', '_ext.so: undefined symbol: _ZN3c10'),
        'undefined symbol',
        '--force-reinstall',
    ),
    'no ops': (failing('mmcv.ops', "No module named 'mmcv._ext'"), 'mmcv._ext', 'it brings the ops'),
    'project not installed': (failing('addp_backbone', "No module named 'addp_backbone'"), 'addp_backbone', '-e .'),
    'something else': (failing('torch', 'Illegal instruction'), 'Illegal instruction', 'new environment'),
    'no ops in force': ({'mmcv_ops': 'none'}, 'no compiled ops', '-e .'),
    'wrong ops': ({'ops_error': 'nms keeps [0, 1]'}, 'nms keeps [0, 1]', 'torchvision'),
    'wrong compiled ops': ({'mmcv_ops': 'compiled', 'ops_error': 'boom'}, 'compiled', 'do not fit this torch'),
    'PYTHONPATH': (
        {'foreign_modules': {'mmdet': '/home/ann/mmdetection/mmdet'}},
        '/home/ann/mmdetection',
        'unset PYTHONPATH',
    ),
    'another clone': ({'project_origin': '/home/ann/old'}, 'imported from /home/ann/old', '-e .'),
    'stand-in not installed': ({'finder_installed': False}, 'stock mmdet', '-e .'),
    'CPU build': ({'nvidia_driver': '570.1', 'torch_cuda': None}, 'CPU build', 'pip install --force-reinstall torch'),
    'old driver': ({'nvidia_driver': '450.1'}, 'driver 450.1', 'update the driver'),
    'old GPU': ({'cuda_available': True, 'torch_archs': ['sm_80'], 'gpus': [GPU]}, 'Tesla K80', 'pytorch.org'),
    'small shared memory': ({'shm_gib': 0.0625}, '/dev/shm has 0.06 GiB', '--shm-size'),
}


def test_a_good_environment_has_no_problem() -> None:
    assert find_problems(GOOD) == []


@pytest.mark.parametrize('name', BAD)
def test_a_bad_combination_is_named_with_one_line_that_mends_it(name: str) -> None:
    facts, what, mend = BAD[name]
    problems = find_problems({**GOOD, **facts})
    assert len(problems) == 1, problems
    assert what in problems[0].what
    assert mend in problems[0].mend
    assert '\n' not in problems[0].mend


def test_one_cause_seen_through_several_modules_is_one_problem() -> None:
    message = 'libGL.so.1: cannot open shared object file'
    errors = {'import_errors': {'cv2': message, 'mmcv': message, 'mmdet.models': message}}
    assert [problem.what for problem in find_problems({**GOOD, **errors})] == [
        f'import of cv2, mmcv, mmdet.models fails: {message}'
    ]


def test_facts_that_are_absent_are_not_judged() -> None:
    assert find_problems({}) == []


def test_the_facts_of_this_environment_tell_the_ops_that_work() -> None:
    facts = collect_facts(ROOT)
    assert facts['mmcv_ops'] in ('compiled', 'torchvision stand-in')
    assert facts['ops_error'] is None
    assert facts['import_errors'] == {}
    assert facts['packages']['torch'] and facts['cpu_threads'] >= 1


def test_doctor_prints_problems_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tool = runpy.run_path(str(ROOT / 'tools' / 'doctor.py'))
    modules = {name: tool['load_by_path'](name) for name in ('doctor', 'environment')}
    small = {**GOOD, 'shm_gib': 0.06, 'executable': 'python', 'platform': 'Linux', 'cpu_threads': 2}
    monkeypatch.setattr(modules['environment'], 'collect_facts', lambda repository: small)
    monkeypatch.setitem(tool['main'].__globals__, 'load_by_path', modules.get)
    assert tool['main']([]) == 1
    printed = capsys.readouterr().out
    assert (
        '/dev/shm has 0.06 GiB' in printed and 'MEND  docker run --shm-size' in printed and '1 problem found' in printed
    )


def test_doctor_runs_where_not_even_torch_is_installed() -> None:
    """With -S -I there is no site-packages: only the standard library is left."""
    run = subprocess.run(
        [sys.executable, '-S', '-I', str(ROOT / 'tools' / 'doctor.py')],
        capture_output=True,
        text=True,
        env={'PATH': os.environ['PATH']},
        timeout=60,
    )
    assert run.returncode == 1
    assert run.stderr == ''
    assert 'import of numpy, cv2, torch' in run.stdout and 'make setup' in run.stdout
