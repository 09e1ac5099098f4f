"""The wheel in a fresh environment, outside the repository: console commands, configs by name, a prediction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from small_configs import REPOSITORY
from small_exports import save, write_detector


@pytest.fixture(scope='module')
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the commands of a fresh environment that has the wheel, and this one's packages without the project."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    subprocess.run(['git', 'clone', '--quiet', str(REPOSITORY), str(source)], check=True)
    pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
    options = ['--no-deps', '--no-build-isolation', '--wheel-dir', str(folder)]
    subprocess.run([*pip, 'wheel', *options, str(source)], check=True, env=clean())
    (wheel,) = folder.glob('addp_transfer-*.whl')
    venv.create(folder / 'venv', with_pip=False)
    python = folder / 'venv/bin/python'
    subprocess.run([*pip, '--python', str(python), 'install', '--no-deps', str(wheel)], check=True, env=clean())
    query = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    site = subprocess.run([python, '-c', query], check=True, capture_output=True, text=True).stdout.strip()
    # A path in a .pth file makes packages importable, but does not run the .pth files that lie there: not the editable
    # install's.
    (Path(site) / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return python.parent


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'} | {'OMP_NUM_THREADS': '1'}


def run(commands: Path, folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(commands / name), *arguments]
    return subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True, timeout=600)


def test_the_package_is_the_wheels_and_has_configs_and_tools(commands: Path, tmp_path: Path) -> None:
    code = (
        'import addp_backbone, mmcv._ext; from addp_backbone.files.shipped import config_names, find_config;'
        'from mmengine import Config; print(addp_backbone.__file__); print(len(config_names()));'
        '[Config.fromfile(find_config(name)) for name in config_names()]'
    )
    done = run(commands, tmp_path, 'python', '-c', code)
    assert done.returncode == 0, done.stderr
    origin, number = done.stdout.split()[-2:]
    assert Path(origin).is_relative_to(commands.parent) and int(number) > 40


def test_the_wheel_puts_the_stand_in_into_site_packages_of_any_python(commands: Path) -> None:
    (wheel,) = commands.parents[1].glob('addp_transfer-*.whl')
    assert wheel.name.endswith('-py3-none-any.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert {'addp_mmcv_finder.py', 'addp_mmcv_finder.pth'} <= set(names)
    assert not [name for name in names if '.data/' in name]  # where paths have the version of the Python that built it


def test_a_photograph_is_predicted_outside_the_repository(commands: Path, tmp_path: Path, tiny_coco: Path) -> None:
    config = write_detector(tmp_path)
    checkpoint = save(config)
    shipped = next(commands.parent.glob('lib/*/site-packages/addp_backbone/shipped'))
    config.write_text(config.read_text().replace(str(REPOSITORY), str(shipped)))
    image = str(next((tiny_coco / 'val2017').iterdir()))
    options = ['--out', 'out', '--score-thr', '0.1', '--device', 'cpu']
    done = run(commands, tmp_path, 'addp-predict', str(config), str(checkpoint), image, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / 'out/predictions.json').read_text())['images'][0]['objects']


def test_a_misspelt_config_is_met_with_the_nearest_name(commands: Path, tmp_path: Path) -> None:
    done = run(commands, tmp_path, 'addp-train', 'det/addp_base_maskrcn')
    assert done.returncode == 1 and 'did you mean det/addp_base_maskrcnn?' in done.stderr, done.stderr
