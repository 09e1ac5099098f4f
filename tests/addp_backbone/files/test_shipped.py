"""Configs by name, and what an installation promises: its commands and its requirements."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
from small_configs import REPOSITORY

from addp_backbone.files import shipped
from addp_backbone.files.shipped import config_names, find_config
from addp_backbone.runtime import commands
from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.launch import load_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip('tomli')

PROJECT = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text(encoding='utf-8'))['project']


def test_a_config_is_found_by_its_name_and_a_file_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_config('det/addp_base_maskrcnn') == REPOSITORY / 'det_configs/addp_base_maskrcnn.py'
    assert find_config('pretrain/addp_tiny') == REPOSITORY / 'pretrain/configs/addp_tiny.py'
    monkeypatch.chdir(tmp_path)
    own = tmp_path / 'det/addp_base_maskrcnn'
    own.parent.mkdir()
    own.write_text('')
    assert find_config('det/addp_base_maskrcnn') == Path('det/addp_base_maskrcnn')
    assert find_config('own/other.py') == Path('own/other.py')


def test_every_leaf_has_a_name() -> None:
    names = config_names()
    assert {'det/addp_tiny_maskrcnn', 'seg/addp_base_upernet', 'pretrain/addp_base_1600e'} <= set(names)
    assert all(find_config(name).is_file() for name in names) and not [name for name in names if '_base_/' in name]


def test_a_config_loads_by_its_name() -> None:
    cfg = load_config('seg/addp_tiny_upernet')
    assert cfg.work_dir == 'work_dirs/addp_tiny_upernet'
    with pytest.raises(LaunchError, match=r'did you mean seg/addp_base_upernet\?'):
        load_config('seg/addp_bas_upernet')


def test_an_installation_finds_its_own_tools_beside_another_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, 'ROOT', tmp_path)
    own = tmp_path / 'addp_backbone/shipped/tools'
    for folder in (own, tmp_path / 'tools', tmp_path / 'pretrain/configs'):
        folder.mkdir(parents=True)
    assert shipped.shipped_folder('tools') == own
    assert shipped.shipped_folder('pretrain/configs') == tmp_path / 'pretrain/configs'


def test_every_command_runs_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(commands, 'run_tool', lambda name: started.append(name) or 0)
    for target in PROJECT['scripts'].values():
        module, function = target.split(':')
        assert getattr(importlib.import_module(module), function)() == 0
    assert len(started) == len(PROJECT['scripts'])
    assert all((REPOSITORY / 'tools' / f'{name}.py').is_file() for name in started)


def test_what_an_installation_requires_is_what_requirements_say() -> None:
    stated = set(re.findall(r'^[a-z].*$', (REPOSITORY / 'requirements.in').read_text(encoding='utf-8'), re.MULTILINE))
    assert set(PROJECT['dependencies']) <= stated
    for extra in ('dev', 'docs'):
        assert set(PROJECT['optional-dependencies'][extra]) <= stated
