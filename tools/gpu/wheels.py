"""Collects the wheels that a machine with torch, torchvision, timm, OpenCV, scipy and matplotlib lacks, in one folder.

    make gpu-wheels [PYTHONS="3.11 3.12"]                  # or: python -m tools.gpu.wheels --python 3.11 3.12

The folder travels to a machine without network, where the line that is printed installs it. Versions are those of
requirements.txt; for each Python version its own compiled wheels are taken. transformers is for the comparison with
HF VitDet alone. What the packages need beyond these (data augmentation, TensorBoard) no check imports.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from tools.command_line import ROOT, make_parser, run_command

BUILT = ('fairscale', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation')  # published as source; pure Python
DOWNLOADED = (
    'onedl-mmengine', 'einops', 'pycocotools', 'faster-coco-eval', 'shapely',
    'addict', 'yapf', 'platformdirs', 'termcolor', 'rich', 'markdown-it-py', 'mdurl', 'pygments', 'prettytable',
    'wcwidth', 'ftfy', 'regex', 'terminaltables', 'six', 'tomli', 'transformers', 'tokenizers',
    'imaug', 'scikit-image', 'imageio', 'tifffile', 'lazy-loader', 'networkx',
)  # fmt: skip
GLIBC = ('2_17', '2_24', '2_27', '2_28', '2_31', '2_34')  # pip takes exactly those named
LIMIT_MIB = 60


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    running = '.'.join(platform.python_version_tuple()[:2])
    parser.add_argument('--python', nargs='+', default=[running], metavar='3.N', help='default: %(default)s')
    parser.add_argument('--out', type=Path, default=Path('build/gpu_wheels'), help='default: %(default)s')
    args = parser.parse_args(argv)
    for version in args.python:
        if version not in ('3.10', '3.11', '3.12', '3.13'):
            parser.error(f'--python {version}: wanted 3.10, 3.11, 3.12 or 3.13')
    return args


def run(args: argparse.Namespace) -> None:
    """Fills the folder and prints its size and how to install it."""
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    for version in args.python:
        folder = args.out / version if len(args.python) > 1 else args.out
        folder.mkdir(exist_ok=True)
        download(pinned(DOWNLOADED, version), version, folder)
    build([*pinned(BUILT, args.python[0]), str(ROOT)], args.out)
    wheels = sorted(args.out.rglob('*.whl'))
    size_mib = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    if size_mib > LIMIT_MIB:
        raise ValueError(f'{args.out} has {size_mib:.1f} MiB, wanted at most {LIMIT_MIB}: give fewer --python versions')
    print(f'{args.out}: {len(wheels)} wheels, {size_mib:.1f} MiB. There, with the Python that has torch:')
    own = ' FOLDER/3.N/*.whl' if len(args.python) > 1 else ''
    print(f'python -m pip install --no-index --no-deps --find-links FOLDER FOLDER/*.whl{own}')


def pinned(names: Sequence[str], python: str) -> list[str]:
    """``name==version`` as requirements.txt has it for a Python version, without those that are not for it."""
    environment = dict(python_version=python, python_full_version=f'{python}.99', sys_platform='linux')
    environment.update(platform_machine='x86_64', platform_python_implementation='CPython')
    found = {}
    for line in (ROOT / 'requirements.txt').read_text(encoding='utf-8').splitlines():
        requirement = Requirement(line)
        if requirement.name in names and (requirement.marker is None or requirement.marker.evaluate(environment)):
            found[requirement.name] = f'{requirement.name}{requirement.specifier}'
    missing = set(names) - set(found) - {'tomli'}  # which Python has itself from 3.11 on
    if missing:
        raise ValueError(f'requirements.txt has no version of {", ".join(sorted(missing))} for Python {python}')
    return [found[name] for name in names if name in found]


def download(requirements: Sequence[str], python: str, folder: Path) -> None:
    """Downloads wheels for Linux on x86-64."""
    platforms = [f'--platform=manylinux_{glibc}_x86_64' for glibc in GLIBC]
    old = ['--platform=manylinux2014_x86_64', '--platform=manylinux1_x86_64']
    abis = [f'--abi={abi}' for abi in (f'cp{python.replace(".", "")}', 'abi3', 'none')]
    version = [f'--python-version={python}', '--implementation=cp', *abis, *platforms, *old]
    _pip('download', '--only-binary=:all:', *version, f'--dest={folder}', *requirements)


def build(requirements: Sequence[str], folder: Path) -> None:
    """Builds wheels without compiled code, this project's among them."""
    _pip('wheel', f'--wheel-dir={folder}', *requirements)


def _pip(command: str, *options: str) -> None:
    words = [sys.executable, '-m', 'pip', command, '--quiet', '--disable-pip-version-check', '--no-deps', *options]
    if subprocess.run(words, check=False).returncode:
        raise ValueError(f'pip {command} failed (see above): is there a network, and are the versions published?')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run_command(run, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
